"""The training run of one concept: from encoded examples to a concept in the bank."""

import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn, zeros

from .. import subspace
from ..bank import Bank, Concept, ConceptSpec, NewConcept, Provenance
from ..data.dataset import EncodedConcept
from ..errors import TrainingDiverged, TrainingExploded
from ..hashing import fingerprint
from ..model.adapters import Adapter
from ..model.denoiser import Denoiser
from ..model.sd15 import find_layers
from ..monitor import Monitor, StepReport, wait_for_others
from .checkpoint import Checkpoint, resumable_checkpoint
from .config import ResolvedConfig, TrainingConfig
from .earlier_concepts import EarlierConcepts
from .initialization import Start, measure_start
from .minibatches import draw_minibatches
from .objective import DenoisingObjective, check_base_is_finite
from .plan import TrainingPlan, describe_full_layers, make_plan
from .preview import preview_latents
from .state import TrainingState

CHECKPOINT_SECONDS = 60.0
_CURVE_POINTS = 100
_FINAL_SHARE = 10  # the reported final loss is the mean over the last tenth of the steps
# An exploded run ends at many times the loss that it began with, and above what predicting no noise at all costs (1).
_EXPLODED_RATIO, _EXPLODED_LOSS = 5.0, 2.0


@dataclass(frozen=True)
class RunOptions:
    """How a training run is carried out, as opposed to what it computes.

    Attributes:
        resume: continue from the concept's checkpoint if there is one.
        restart_if_changed: with `resume`, start again if the checkpoint is of other settings or data, instead of
            refusing.
        replace: an existing concept of that name is removed once the new one is trained.
        checkpoint_seconds: seconds between checkpoints.
        thumbnail: stored with the concept.
        preview_every: steps between previews for the monitor; 0 makes none.
        vocabulary: entries of the base's tokenizer, by which a token that is an ordinary word is recognized.
        store_anyway: store the concept even if the loss ended far above where it began.
    """

    resume: bool = False
    restart_if_changed: bool = False
    replace: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    thumbnail: Image.Image | None = None
    preview_every: int = 0
    vocabulary: Container[str] = ()
    store_anyway: bool = False


def train_concept(
    denoiser: Denoiser,
    encode: Callable[[Sequence[str]], EncodedConcept],
    bank: Bank,
    spec: ConceptSpec,
    config: ResolvedConfig,
    monitor: Monitor | None = None,
    options: RunOptions = RunOptions(),
    requested: TrainingConfig | None = None,
) -> Concept:
    """Train a concept on a frozen UNet and add it to the bank.

    The UNet is not changed: adapters act on the outputs of its layers while this function runs.  A checkpoint is
    written at intervals and whenever the run stops early, for whatever reason, at the end of a step.

    Args:
        encode: called once, after all checks have passed and while no other training run can change the bank, with the
            protected prompts; returns the concept's images and these prompts, encoded.
        requested: what `config` was resolved from, stored for display.

    Raises:
        UserError: something to fix (see `make_plan`, `Checkpoint.check_same_run`); nothing was changed.
        Cancelled: the monitor asked for it; a checkpoint is saved.
        TrainingDiverged: the loss or a factor is not finite; the last checkpoint is kept.
        TrainingExploded: the loss ended far above where it began; `options.store_anyway` stores it from the checkpoint.
    """
    monitor, requested = monitor or Monitor(), requested or config
    layers = find_layers(denoiser.unet, config.layers)
    plan = make_plan(bank.refresh(), spec, requested, config, layers, options.replace)
    planned_for = bank.manifest.generation
    for note in bank.check_words(spec, options.vocabulary):
        monitor.message(note)
    with bank.training(wait_for_others(monitor)):
        if bank.manifest.generation != planned_for:
            plan = make_plan(bank, spec, requested, config, layers, options.replace)
        for problem in plan.damaged:
            monitor.message(problem)
        data = encode(plan.prompts)
        if plan.full:
            monitor.message(describe_full_layers(plan.full, config.rank))
        concept = _Run(denoiser, data, bank, plan, layers, monitor, options).train()
        bank.discard_checkpoint(spec.name)
    return concept


class _Run:
    """One training run."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: EncodedConcept,
        bank: Bank,
        plan: TrainingPlan,
        layers: Mapping[str, nn.Module],
        monitor: Monitor,
        options: RunOptions,
    ) -> None:
        self.denoiser, self.data, self.bank, self.plan = denoiser, data, bank, plan
        self.monitor, self.options, self.config = monitor, options, plan.config
        self.layers = {name: layers[name] for name in plan.Q}
        self.Q = [Q.float().to(denoiser.device) for Q in plan.Q.values()]
        self.path = bank.checkpoint_path(plan.spec.name)
        self.identity = {
            "base model": bank.manifest.base.fingerprint,
            "concept": [plan.spec.name, plan.spec.token, plan.spec.class_word],
            "data": data.fingerprint(),
            "concepts before it": list(plan.concepts),
        }

    def train(self) -> Concept:
        """All steps, from the start or from the checkpoint."""
        saved = self._saved()
        check_base_is_finite(self.denoiser, self.data, self.config)
        earlier = EarlierConcepts(self.plan.earlier.values(), self.denoiser.device)
        with earlier.attached(self.denoiser.unet):
            start = measure_start(self.denoiser, self.data, self.plan, self.layers, self.monitor, bool(saved))
            objective = DenoisingObjective(
                self.denoiser, self.layers, self.config.dtype, self.config.ridge, start.penalty, earlier
            )
            state = self._begin(start, objective, saved)
            sparing = self.denoiser.checkpointing() if self.config.gradient_checkpointing else nullcontext()
            self.monitor.stage("training", state.step, self.config.steps)
            with objective.attached(), sparing, self._saving_on_exit(state, objective):
                self._all_steps(state, objective)
                self._check_not_exploded(state.losses)
                return self.bank.add(self._result(state, objective), replace=self.options.replace)

    def _all_steps(self, state: TrainingState, objective: DenoisingObjective) -> None:
        started, seconds_before, first = time.monotonic(), state.seconds, state.step
        last_saved = started
        while state.step < self.config.steps:
            self.monitor.stop_if_cancelled()
            with _undone_if_interrupted(state, objective):
                objective.use(draw_minibatches(self.data, self.denoiser, self.config, state.step))
                state.finish_step(self._iterate(objective, state))
                _check_finite(state)
            now = time.monotonic()
            state.seconds = seconds_before + now - started
            if now - last_saved >= self.options.checkpoint_seconds:
                self._save(state, objective)
                last_saved = now
            left = (now - started) / (state.step - first) * (self.config.steps - state.step)
            self.monitor.stepped(StepReport(state.step, self.config.steps, state.losses[-1], left))
            if self.options.preview_every and state.step % self.options.preview_every == 0:
                self._preview(state, objective)

    def _preview(self, state: TrainingState, objective: DenoisingObjective) -> None:
        latents = preview_latents(objective, self._factors(state), self.data, self.config.seed)
        if latents.isfinite().all():
            self.monitor.previewed(latents)
        else:
            self.monitor.message(f"The preview of step {state.step} is not finite and is left out.")

    def _check_not_exploded(self, losses: Sequence[float]) -> None:
        first, final = _mean_of_tenth(losses, last=False), _mean_of_tenth(losses, last=True)
        if final <= max(_EXPLODED_LOSS, _EXPLODED_RATIO * first):
            return
        rise = f"The loss rose from {first:.3g} to {final:.3g}"
        if not self.options.store_anyway:
            raise TrainingExploded(f"{rise}, so the concept is not stored: lower lr_coefficients and lr_basis.")
        self.monitor.message(f"{rise}; the concept is stored all the same, as you asked.")

    def _iterate(self, objective: DenoisingObjective, state: TrainingState) -> float:
        """One step: some iterations on the same minibatches; returns the loss before them."""
        losses = [
            self.plan.method.iterate(objective, state.lower, state.upper, self.Q, self.config)
            for _ in range(self.config.bilevel_iterations)
        ]
        return losses[0]

    def _begin(self, start: Start, objective: DenoisingObjective, saved: Checkpoint | None) -> TrainingState:
        """The state before the first step of this session."""
        device = self.denoiser.device
        if saved:
            A, B = ([saved.tensors[f"{factor}.{name}"] for name in self.layers] for factor in "AB")
        else:
            A = [zeros(layer.out_features, self.config.rank) for layer in self.layers.values()]
            B = start.bases(self.plan)
        along = start.coordinates(self.plan, device)
        state = TrainingState.begin(A, B, self.config, self.plan.first_averaged, along, device)
        state.coordinates = fingerprint(start.directions) if along else ""
        if saved:
            state.step, state.losses, state.seconds = saved.step, saved.losses, saved.seconds
            objective.passes, objective.loss_scale = saved.passes, saved.loss_scale or objective.loss_scale
            state.load_optimizers(saved.tensors, device, self._same_coordinates(saved, state.coordinates))
        return state

    def _same_coordinates(self, saved: Checkpoint, coordinates: str) -> bool:
        """Whether the saved optimizer of the basis is in this run's coordinates.

        The directions are recomputed on resume; rounding can flip signs or mix near-equal ones.
        """
        if not any(name.startswith("upper.") for name in saved.tensors) or saved.directions in (None, coordinates):
            return True
        self.monitor.message(
            "The basis optimizer was reset: its coordinates differ from the checkpoint's (other device, thread count "
            "or version)."
        )
        return False

    def _saved(self) -> Checkpoint | None:
        """The checkpoint to continue from."""
        if not self.options.resume:
            return None
        restart = self.options.restart_if_changed
        free = {name: Q.shape[0] - Q.shape[1] for name, Q in self.plan.Q.items()}
        shapes = {name: (layer.out_features, layer.in_features, free[name]) for name, layer in self.layers.items()}
        return resumable_checkpoint(self.path, self.config, self.identity, self.data, restart, self.monitor, shapes)

    @contextmanager
    def _saving_on_exit(self, state: TrainingState, objective: DenoisingObjective) -> Iterator[None]:
        """Keep the finished steps of a run that stops early, also if its result cannot be stored."""
        try:
            yield
        except BaseException:
            if state.step:
                self._save(state, objective)
            raise

    def _save(self, state: TrainingState, objective: DenoisingObjective) -> None:
        """Write a checkpoint; one that cannot be written is no reason to lose the run."""
        checkpoint = Checkpoint(
            step=state.step,
            config=self.config,
            identity=self.identity,
            losses=state.losses,
            seconds=state.seconds,
            passes=objective.passes,
            loss_scale=objective.loss_scale,
            tensors=state.state_dict(list(self.layers)),
            directions=state.coordinates,
        )
        written = False
        try:
            checkpoint.save(self.path)
            written = True
        except OSError as error:
            self.monitor.message(
                f"The checkpoint {self.path} cannot be written ({error.strerror or error}), so a run that stops now "
                "cannot be resumed: free some space, or close the program that has the file open."
            )
        self.monitor.checkpointed(state.step, self.config.steps, written)

    def _factors(self, state: TrainingState) -> tuple[list[Tensor], list[Tensor]]:
        """A and B as the concept has them if the run ends here."""
        A, B = state.factors()
        return A, [subspace.project(b, q) for b, q in zip(B, self.Q, strict=True)]

    def _result(self, state: TrainingState, objective: DenoisingObjective) -> NewConcept:
        A, B = self._factors(state)
        B = [subspace.reproject_if_needed(b.cpu(), Q) for b, Q in zip(B, self.plan.Q.values(), strict=True)]
        spec = self.plan.spec
        return NewConcept(
            name=spec.name,
            token=spec.token,
            class_word=spec.class_word,
            rank=self.config.rank,
            method=self.config.method,
            adapters={name: Adapter.from_factors(a.cpu(), b) for name, a, b in zip(self.layers, A, B, strict=True)},
            provenance=Provenance(data=self.identity["data"]),
            settings=self.config.as_dict(),
            requested=self.plan.requested.as_dict(),
            metrics={
                "first_loss": state.losses[0],
                "final_loss": _mean_of_tenth(state.losses, last=True),
                "loss_curve": _curve(state.losses),
                "steps": state.step,
                "passes": objective.passes,
                "seconds": round(state.seconds, 2),
                "device": str(self.denoiser.device),
                "images": len(self.data.examples),
            },
            thumbnail=self.options.thumbnail,
        )


@contextmanager
def _undone_if_interrupted(state: TrainingState, objective: DenoisingObjective) -> Iterator[None]:
    """Leave everything as it was before a step that does not end: hosts raise their interrupt inside any layer."""
    before, passes, loss_scale = state.copy(), objective.passes, objective.loss_scale
    try:
        yield
    except BaseException:
        state.restore(before)
        objective.passes, objective.loss_scale = passes, loss_scale
        raise


def _check_finite(state: TrainingState) -> None:
    """Raise TrainingDiverged where a step made factors that are not finite, so that no checkpoint ever holds them."""
    factors = [*state.lower.parameters, *state.upper.parameters]
    if not (math.isfinite(state.losses[-1]) and torch.stack([factor.isfinite().all() for factor in factors]).all()):
        raise TrainingDiverged(
            f"The factors are no longer finite after step {state.step}: lower lr_coefficients and lr_basis."
        )


def _mean_of_tenth(losses: Sequence[float], last: bool) -> float:
    count = max(len(losses) // _FINAL_SHARE, 1)
    return sum(losses[-count:] if last else losses[:count]) / count


def _curve(losses: list[float]) -> list[float]:
    """At most `_CURVE_POINTS` means of consecutive losses: enough to draw, little to keep in every manifest."""
    stride = -(-len(losses) // _CURVE_POINTS)
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [round(sum(part) / len(part), 6) for part in parts]
