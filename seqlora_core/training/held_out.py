"""The loss of images that are not trained on, at fixed noise and timesteps.

It shows when a concept begins to learn its images by heart: their loss goes on falling, and this one rises.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import EncodedConcept, Example
from ..model.denoiser import Denoiser
from ..randomness import named_generator
from .objective import DenoisingObjective

MEASUREMENTS = 20  # in a run, and one before its first step
TIMESTEPS = 8  # forward passes per image and measurement


@dataclass
class HeldOutLosses:
    """The measurements of a run.

    Attributes:
        losses: by the number of finished steps of the factors.
    """

    losses: dict[int, float] = field(default_factory=dict)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` steps: at regular distances, and at the end."""
        return step not in self.losses and (step == steps or step % max(steps // MEASUREMENTS, 1) == 0)

    def metrics(self) -> dict[str, object]:
        """What the bank stores; nothing if nothing was measured."""
        if not self.losses:
            return {}
        steps = sorted(self.losses)
        curve = [round(self.losses[step], 6) for step in steps]
        return {"held_out_loss": curve[-1], "held_out_steps": steps, "held_out_curve": curve}

    def record(self) -> list[list[float]]:
        """JSON-ready pairs, for a checkpoint."""
        return [list(pair) for pair in self.losses.items()]

    @classmethod
    def from_record(cls, record: Sequence[Sequence[float]]) -> "HeldOutLosses":
        """The measurements that `record` returned."""
        return cls({int(step): float(loss) for step, loss in record})


def held_out_loss(
    objective: DenoisingObjective, factors: tuple[list[Tensor], list[Tensor]], data: EncodedConcept, seed: int
) -> float:
    """Compute the mean squared error of the predicted noise over the held-out images.

    Every image is shown with its first prompt at the middles of `TIMESTEPS` equal parts of the schedule, each with a
    noise of its own that is the same in every measurement.  No image is cropped at random.

    Args:
        factors: A and B, [m, r] and [n, r] per layer.
        seed: of the noise.
    """
    schedule = objective.denoiser.alphas_cumprod
    timesteps = ((torch.arange(TIMESTEPS) + 0.5) / TIMESTEPS * len(schedule)).long()
    losses = []
    for number, example in enumerate(data.held_out):
        for timestep in timesteps.tolist():
            generator = named_generator(seed, "held out", number, timestep)
            losses.append(_loss(objective, factors, example, timestep, generator))
    return sum(losses) / len(losses)


def _loss(
    objective: DenoisingObjective,
    factors: tuple[list[Tensor], list[Tensor]],
    example: Example,
    timestep: int,
    generator: torch.Generator,
) -> float:
    denoiser: Denoiser = objective.denoiser
    noise = torch.randn(1, *example.mean.shape, generator=generator)
    signal = denoiser.alphas_cumprod.cpu()[timestep]
    noisy = signal.sqrt() * example.mean.float().cpu() + (1 - signal).sqrt() * noise
    own_rows = None if example.own_rows is None else example.own_rows[:1].to(denoiser.device)
    text = example.prompts[:1].float().to(denoiser.device)
    at = torch.tensor([timestep], device=denoiser.device)
    predicted = objective.predict_noise(*factors, noisy.to(denoiser.device), at, text, own_rows).cpu()
    mask = torch.ones_like(noise[:, :1]) if example.mask is None else example.mask.float().cpu()[None]
    error = F.mse_loss(predicted, noise, reduction="none").mean(1, keepdim=True)
    return ((error * mask).sum() / mask.sum()).item()
