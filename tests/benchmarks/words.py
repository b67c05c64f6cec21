"""Learned words beside rare ones on the mini base: identity right after training, in the sum of all, and alone.

    python -m tests.benchmarks.words --work DIR --out FILE [--concepts 16] [--seeds 0 1 2] [--tuning] VARIANT ...

A variant is `NAME` or `NAME:SETTING=VALUE,...` on top of the default, 300 passes per concept.  Banks and figures are
kept under DIR, so that a run which was stopped goes on.  `--tuning` takes the last 16 of the 48 concepts, on which
defaults are chosen; figures are measured on the others.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from seqlora_core.bank import Bank
from seqlora_core.bank.names import default_token
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.concatenation import compose
from seqlora_core.data.encoding import encode_concept
from seqlora_core.data.images import to_tensor
from seqlora_core.data.prompts import subject_prompt, template_prompts
from seqlora_core.data.reference_folder import Reference
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.mini.identity import identity_similarity
from seqlora_core.model.base import Base, load_base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import METHODS, resolve
from seqlora_core.training.plan import trained_subject
from seqlora_core.training.trainer import RunOptions, train_concept

PASSES, TUNING = 300, 16
SETTINGS = {"rank": 2, "batch_size": 4, "lr_coefficients": 1e-2, "lr_basis": 1e-2}
IMAGES, SAMPLER_STEPS, GUIDANCE = 16, 16, 4.0
STAGES = ("after", "final", "alone", "word")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON of the figures")
    parser.add_argument("--concepts", type=int, default=16, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base, known = load_base("mini", "cpu"), mini_concepts()
    chosen = (known[-TUNING:] if arguments.tuning else known[:-TUNING])[: arguments.concepts]
    figures = []
    for text in arguments.variants:
        name, _, settings = text.partition(":")
        for seed in arguments.seeds:
            folder = arguments.work / f"{name}-{len(chosen)}{'t' if arguments.tuning else ''}-{seed}"
            config = variant_config(dict(part.split("=") for part in settings.split(",") if part), seed, base)
            run = measure(base, chosen, config, folder)
            means = {stage: sum(scores) / len(scores) for stage, scores in run["scores"].items() if scores}
            figures.append({"variant": name, "settings": settings, "seed": seed, "concepts": len(chosen), **run})
            print(name, seed, {stage: round(mean, 3) for stage, mean in means.items()}, flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def variant_config(settings: Mapping[str, str], seed: int, base: Base) -> ResolvedConfig:
    """Resolve the settings of a variant, with as many steps as the passes allow."""
    values = {name: kind(settings[name]) for name, kind in _kinds().items() if name in settings}
    values = {**SETTINGS, "seed": seed, **values}
    config = resolve(TrainingConfig(**values), base.native_size, "float32")
    steps = PASSES // METHODS[config.method].passes(config)
    return resolve(TrainingConfig(**values, steps=steps), base.native_size, "float32")


def _kinds() -> dict[str, type]:
    numbers = ("token_share", "lr_token", "lr_coefficients", "lr_basis", "interference_penalty", "min_snr_gamma")
    numbers += ("noise_offset", "caption_dropout", "lr_warmup")
    texts = ("method", "init", "train_on", "acts_on", "lr_schedule")
    return {"token_vectors": int, **dict.fromkeys(texts, str), **dict.fromkeys(numbers, float)}


def measure(base: Base, concepts: list[MiniConcept], config: ResolvedConfig, folder: Path) -> dict:
    """Train all concepts and score them; scores are lists, in the order of the concepts."""
    bank, path, started = Bank.open_or_create(folder, base.identity, base.layers), folder / "scores.json", time.time()
    record = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for stage in STAGES:
        record.setdefault(stage, {})

    def score(stage: str, concept: MiniConcept, names: list[str]) -> None:
        if concept.name not in record[stage]:
            adapters = compose(bank, [(name, 1.0) for name in names]) if names else None
            prompt = subject_prompt(bank.concept(concept.name).subject)
            settings = SamplingSettings(SAMPLER_STEPS, base.native_size, GUIDANCE, config.seed * IMAGES, count=IMAGES)
            images = generate(base, prompt, adapters, settings, bank.words())
            similarity = identity_similarity(to_tensor(images), to_tensor(concept.references)).mean().item()
            record[stage][concept.name] = round(similarity, 4)
            path.write_text(json.dumps(record, indent=1), "utf-8")

    order = [concept.name for concept in concepts]
    for number, concept in enumerate(concepts, start=1):
        if bank.refresh().manifest.find(concept.name) is None:
            _train(base, bank, concept, config)
        score("after", concept, order[:number])
        score("alone", concept, [concept.name])
        if config.learns_word:
            score("word", concept, [])
        print(f"  {folder.name} {number}/{len(concepts)} {time.time() - started:.0f} s", flush=True)
    for concept in concepts:
        score("final", concept, order)
    return {"scores": {stage: list(record[stage].values()) for stage in STAGES}}


def _train(base: Base, bank: Bank, concept: MiniConcept, config: ResolvedConfig) -> None:
    spec = ConceptSpec(concept.name, default_token(concept.name), concept.class_word)
    prompts = template_prompts(trained_subject(spec, config))
    references = [Reference(image, prompts, concept.name) for image in concept.references]
    train_concept(
        base.denoiser(),
        lambda protected, words: encode_concept(
            base,
            references,
            config.resolution,
            protected=protected,
            words=words,
            empty=config.caption_dropout > 0,
        ),
        bank,
        spec,
        config,
        options=RunOptions(resume=True),
        text_encoder=base.text_encoder,
    )


if __name__ == "__main__":
    main()
