"""Previews of a training: when they come, what they show, and that they change nothing."""

from dataclasses import replace

import pytest
import torch
from training_runs import captioned, encoded, random_concept, resolved, spec

from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.data.dataset import Example
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.monitor import Monitor
from seqlora_core.training.objective import DenoisingObjective
from seqlora_core.training.preview import preview_latents
from seqlora_core.training.trainer import RunOptions, train_concept


class Previews(Monitor):
    """Keeps the preview pictures' latents."""

    def __init__(self) -> None:
        self.latents = []

    def previewed(self, latents) -> None:
        self.latents.append(latents)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_previews_come_at_their_steps_and_change_nothing(denoiser, bank, checkpointing):
    before = {name: value.clone() for name, value in denoiser.unet.state_dict().items()}
    config = resolved(steps=5, rank=2, layers="all", lr_coefficients=0.05, gradient_checkpointing=checkpointing)
    watched = Previews()

    def learned(monitor: Monitor, options: RunOptions) -> list[torch.Tensor]:
        concept = train_concept(
            denoiser, encoded(random_concept(1)), bank, ConceptSpec("a", "sksa", "thing"), config, monitor, options
        )
        return [factor for adapter in bank.load([concept])["a"].values() for factor in adapter.factors]

    seen = learned(watched, RunOptions(preview_every=2))
    bank.remove("a")
    unseen = learned(Monitor(), RunOptions())
    assert all(map(torch.equal, seen, unseen)) and len(seen) == len(unseen)
    assert [tuple(latents.shape) for latents in watched.latents] == [(1, 4, 8, 8)] * 3  # steps 0, 2 and 4
    first, second, third = watched.latents
    assert not torch.allclose(first, second) and not torch.allclose(second, third)  # the concept as it was then
    assert all(torch.equal(value, before[name]) for name, value in denoiser.unet.state_dict().items())


def test_a_preview_of_a_perfect_denoiser_is_its_picture(denoiser):
    """The sampler is right: a model that knows one picture makes that picture."""
    answer, alphas = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), denoiser.alphas_cumprod

    class Oracle(DiffusersDenoiser):
        def predict_noise(self, noisy, timesteps, text):
            signal = alphas[timesteps].view(-1, 1, 1, 1)
            return (noisy - signal.sqrt() * answer) / (1 - signal).sqrt()

    objective = DenoisingObjective(Oracle(denoiser.unet, alphas), {})
    assert torch.allclose(preview_latents(objective, ([], []), random_concept(0), seed=3), answer, atol=1e-3)


def test_previews_show_the_prompt_and_seed_that_are_asked_for(denoiser, bank, text_encoder):
    def first_preview(**options) -> torch.Tensor:
        watched = Previews()
        train_concept(
            denoiser,
            captioned(text_encoder, spec("a")),
            bank,
            spec("a"),
            resolved(steps=1, method="lora", layers="cross-kv"),
            watched,
            RunOptions(preview_every=9, **options),
            text_encoder=text_encoder,
        )
        bank.remove("a")
        return watched.latents[0]  # of step 0, before anything is learned

    usual = first_preview()
    assert torch.allclose(first_preview(preview_prompt="photo of a sksa"), usual, atol=1e-5)  # the first caption
    assert not torch.allclose(first_preview(preview_prompt="a house"), usual, atol=1e-3)
    assert torch.equal(first_preview(preview_seed=0), usual)  # that of the run
    assert not torch.allclose(first_preview(preview_seed=1), usual, atol=1e-3)


def test_a_preview_prompt_needs_a_text_encoder(denoiser, bank):
    options = RunOptions(preview_every=1, preview_prompt="a house")
    with pytest.raises(ValueError, match="text encoder"):
        train_concept(denoiser, encoded(random_concept(1)), bank, spec("a"), resolved(), options=options)


def test_previews_and_held_out_images_follow_the_word_as_it_is_learned():
    (example,) = random_concept(1, images=1).examples
    named = [replace(example, texts=(text, text)) for text in ("a sksa", "one sksa")]
    preview = Example(example.mean, example.prompts[:1], texts=("a sksa in snow",))
    data = replace(random_concept(1), examples=named[:1], held_out=named[1:], preview=preview)
    asked = []

    def encode(texts):
        asked.extend(texts)
        return torch.arange(len(texts))[:, None, None].expand(-1, 7, 32).float()

    again = data.with_prompts(encode)
    assert asked == ["a sksa", "one sksa", "a sksa in snow"]
    assert [float(own.prompts.mean()) for own in (*again.examples, *again.held_out, again.preview)] == [0, 1, 2]
