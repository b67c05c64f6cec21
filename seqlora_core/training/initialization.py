"""Where the basis of a new concept starts, and in which coordinates it moves: decided from what its layers receive."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import subspace
from ..data.dataset import EncodedConcept
from ..model.activations import capture_inputs, input_group
from ..model.adapters import sum_adapters
from ..model.denoiser import Denoiser
from ..monitor import Monitor, Stage
from .distributed import Processes
from .interference_penalty import InterferencePenalty, ProtectedInputs, watch_protected
from .methods.method import Penalty
from .objective import base_is_not_finite, heldout_loss
from .plan import TrainingPlan

_COVARIANCE_STEPS = 8


@dataclass(frozen=True)
class Start:
    """What is measured before the first step.

    Attributes:
        covariances: per layer, [n, n] of what it receives for the new concept; empty if nothing depends on it.
        directions: per layer, the `contrastive_directions` [n, n - k]; empty if nothing depends on them.
        penalties: the interference penalty and that of the method, where there are such.
    """

    covariances: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]
    penalties: Sequence[Penalty] = ()

    @property
    def penalty(self) -> Penalty | None:
        """Their sum, or None."""
        return (lambda A, B: sum(term(A, B) for term in self.penalties)) if self.penalties else None

    def bases(self, plan: TrainingPlan) -> list[Tensor]:
        """The first B [n, r] of every layer, on the CPU."""
        generator = plan.start_generator()
        return [
            plan.start_basis(name, generator, self.covariances.get(name), self.directions.get(name)) for name in plan.Q
        ]

    def take_from_the_first(self, processes: Processes) -> None:
        """Have what the first of some processes has measured: rounding differs, and what eigenvectors follow it."""
        processes.take_from_the_first([*self.covariances.values(), *self.directions.values()])
        for penalty in self.penalties:
            if isinstance(penalty, InterferencePenalty):  # others are made of the bank alone
                penalty.take_from_the_first(processes)

    def coordinates(self, plan: TrainingPlan, device: torch.device) -> list[Tensor] | None:
        """Per layer, the directions along which B moves, float32; None for its own coordinates."""
        if plan.config.coordinates == "plain" or not self.directions:
            return None
        return [self.directions[name].float().to(device) for name in plan.Q]


def measure_start(
    denoiser: Denoiser,
    data: EncodedConcept,
    plan: TrainingPlan,
    layers: Mapping[str, nn.Module],
    monitor: Monitor,
    resumed: bool = False,
) -> Start:
    """Run the model, with the earlier concepts attached, on the protected prompts and on the concept's own images.

    Args:
        layers: the adapted layers, by canonical name.
        monitor: receives each stage, and is asked between passes whether to stop.
        resumed: the bases are known already, so that only the coordinates matter.

    Raises:
        Cancelled: the monitor asks to stop.
        UserError: what the layers receive is not finite.
    """
    protected = _watch_protected(denoiser, data, plan, layers, monitor)
    needed = plan.needs_inputs and (plan.config.coordinates == "contrastive" or not resumed)
    covariances = _covariances(denoiser, data, plan, layers, monitor) if needed else {}
    measured = [*covariances.values(), *(protected.covariances.values() if protected else ())]
    if not all(covariance.isfinite().all() for covariance in measured):
        raise base_is_not_finite(plan.config.dtype)
    directions = {}
    if covariances and protected is not None and plan.contrasts:
        directions = _directions(plan, covariances, protected, monitor)
    weight = plan.config.interference_penalty
    penalties = [protected.penalty(weight)] if protected is not None and weight else []
    return Start(covariances, directions, [*penalties, *_penalties_of_method(plan, denoiser.device)])


def _penalties_of_method(plan: TrainingPlan, device: torch.device) -> list[Penalty]:
    if plan.method.penalty is None or not plan.earlier:
        return []
    earlier = sum_adapters([(own, 1.0) for own in plan.earlier.values()])
    on_device = [earlier[name].to(device) if name in earlier else None for name in plan.Q]
    return [plan.method.penalty(on_device, plan.config)]


def _watch_protected(
    denoiser: Denoiser,
    data: EncodedConcept,
    plan: TrainingPlan,
    layers: Mapping[str, nn.Module],
    monitor: Monitor,
) -> ProtectedInputs | None:
    if not (plan.config.interference_penalty or plan.contrasts):
        return None
    if data.protected is None:
        monitor.message("No protected prompts were encoded, so other concepts are less protected.")
        return None
    stage = Stage(monitor, f"measuring {len(data.protected)} protected prompts", len(data.protected))
    return watch_protected(
        denoiser,
        layers,
        data.protected,
        data.latent_size,
        plan.config.seed,
        plan.config.batch_size,
        stage.reached,
    )


def _covariances(
    denoiser: Denoiser,
    data: EncodedConcept,
    plan: TrainingPlan,
    layers: Mapping[str, nn.Module],
    monitor: Monitor,
) -> dict[str, Tensor]:
    own = dataclasses.replace(data, prior=())  # images of the class are not what the concept is about
    stage = Stage(monitor, "measuring the concept's own images", _COVARIANCE_STEPS)
    inputs = capture_inputs(layers, lambda: heldout_loss(denoiser, own, plan.config, _COVARIANCE_STEPS, stage.reached))
    return {name: watched.covariance for name, watched in inputs.items()}


def _directions(
    plan: TrainingPlan,
    covariances: Mapping[str, Tensor],
    protected: ProtectedInputs,
    monitor: Monitor,
) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    stage = Stage(monitor, "choosing directions", len(plan.Q))
    # Layers that receive the same input have the same directions, as long as no earlier concept takes any.
    keys = {name: name if Q.shape[1] else input_group(name) for name, Q in plan.Q.items()}
    for index, (name, key) in enumerate(keys.items()):
        if key not in made:
            stage.reached(index)  # a wide layer takes a second
            made[key] = subspace.contrastive_directions(plan.Q[name], covariances[name], protected.covariances[name])
    return {name: made[key] for name, key in keys.items()}
