"""Short training runs for the tests: random data, a monitor that stops, and what came out."""

import torch

from seqlora_core.bank import Bank
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.data.dataset import EncodedConcept, Example
from seqlora_core.data.prompts import template_prompts
from seqlora_core.model.text_encoder import CLIPTextEncoder
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import resolve
from seqlora_core.training.trainer import RunOptions, train_concept

SMALL = ["--resolution", "64", "--steps", "2", "--rank", "2"]


def random_concept(seed: int, images: int = 3, prior: int = 0, size: int = 8) -> EncodedConcept:
    """Random latents and text embeddings."""
    generator = torch.Generator().manual_seed(seed)

    def example() -> Example:
        mean = torch.randn(4, size, size, generator=generator)
        return Example(mean, torch.randn(2, 7, 32, generator=generator), 0.1 * torch.ones_like(mean))

    return EncodedConcept([example() for _ in range(images)], [example() for _ in range(prior)])


def captioned(encoder: CLIPTextEncoder, spec: ConceptSpec, seed: int = 0, captions: tuple[str, ...] = ()):
    """What `train_concept` encodes with: random latents, described by prompts that name the concept's token."""
    texts = captions or template_prompts(spec.token)

    def encode(prompts, words):
        random = random_concept(seed)
        embedded = encoder.encode_all(texts, words)
        examples = [Example(old.mean, embedded, old.std, texts=texts) for old in random.examples]
        return EncodedConcept(examples, protected=encoder.encode_all(prompts, words), source=f"images {seed}")

    return encode


def spec(name: str) -> ConceptSpec:
    return ConceptSpec(name, f"sks{name}", "thing")


def learn(denoiser, bank, name: str, data=None, monitor=None, options=None, **settings):
    data = data or random_concept(sum(map(ord, name)))
    config = resolved(**{"layers": "all", **settings})
    return train_concept(
        denoiser, data if callable(data) else encoded(data), bank, spec(name), config, monitor, options or RunOptions()
    )


def encoded(data: EncodedConcept):
    """What `train_concept` encodes with, for data that is encoded already."""
    return lambda prompts, words: data


def resolved(**settings) -> ResolvedConfig:
    """Settings of a short run, with whatever is left open decided."""
    return resolve(
        TrainingConfig(**{"steps": 4, "rank": 2, "token_vectors": 0, **settings}), native_size=512, dtype="float32"
    )


def factors(bank: Bank, name: str) -> dict:
    return bank.load([bank.refresh().concept(name)])[bank.concept(name).name]


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[layer].A, second[layer].A) and torch.equal(first[layer].B, second[layer].B) for layer in first
    )


class StopAfter(Monitor):
    """Cancels once `steps` steps are done, or raises `error` there."""

    def __init__(self, steps: int, error: BaseException | None = None) -> None:
        self.steps, self.error, self.done, self.messages = steps, error, 0, []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        self.messages.append(text)

    def stepped(self, report) -> None:
        self.done = report.step
        if self.error and self.done == self.steps:
            raise self.error

    def cancelled(self) -> bool:
        return self.error is None and self.done >= self.steps


def train_command(base, bank, images, name, *more) -> list[str]:
    command = ["train", "--base", base, "--bank", bank, "--name", name, "--images", images, "--class-word", "dog"]
    return [str(part) for part in (*command, *SMALL, *more)]
