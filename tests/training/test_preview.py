"""Previews of a training: when they come, what they show, and that they change nothing."""

import pytest
import torch
from training_runs import encoded, random_concept, resolved

from seqlora_core.bank.spec import ConceptSpec
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
