"""The training of one concept: from encoded examples to a concept in the bank."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from .. import subspace
from ..bank import Bank, Concept, NewConcept
from ..bank.spec import ConceptSpec
from ..data.dataset import EncodedConcept
from ..errors import Cancelled
from ..hashing import fingerprint
from ..model.activations import capture_inputs, input_group
from ..model.adapters import Adapter, attach, sum_adapters
from ..model.denoiser import Denoiser
from ..model.sd15 import find_layers
from ..monitor import Monitor, StepReport, wait_for_others
from .checkpoint import Checkpoint
from .config import TrainingConfig
from .factor_optimizer import FactorOptimizer
from .interference_penalty import ProtectedInputs, watch_protected
from .minibatches import draw_minibatches
from .objective import DenoisingObjective, heldout_loss
from .plan import TrainingPlan, describe_full_layers, make_plan
from .preview import preview_latents
from .tail_average import TailAverage

CHECKPOINT_SECONDS = 60.0
_COVARIANCE_STEPS = 8
_CURVE_POINTS = 100
_FINAL_SHARE = 10  # the reported final loss is the mean over the last tenth of the steps


@dataclass(frozen=True)
class RunOptions:
    """How a training is run, as opposed to what it computes.

    Attributes:
        resume: continue from the concept's checkpoint where there is one.
        restart_if_changed: with `resume`, begin anew where the checkpoint is of other settings or data, instead of
            refusing.
        replace: an existing concept of that name gives way once the new one is trained.
        checkpoint_seconds: interval of checkpoints.
        thumbnail: kept with the concept.
        preview_every: steps between two pictures for the monitor; 0 makes none.
    """

    resume: bool = False
    restart_if_changed: bool = False
    replace: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    thumbnail: Image.Image | None = None
    preview_every: int = 0


def train_concept(
    denoiser: Denoiser,
    data: EncodedConcept | Callable[[], EncodedConcept],
    bank: Bank,
    spec: ConceptSpec,
    config: TrainingConfig,
    monitor: Monitor | None = None,
    options: RunOptions = RunOptions(),
) -> Concept:
    """Train a concept on a frozen UNet and add it to the bank.

    The UNet is not changed: adapters act on the outputs of its layers while this function runs.  A checkpoint is
    written at intervals and whenever the training stops early, for whatever reason, at a step's end.

    Args:
        data: encoded images, or a function that encodes them, called after all checks have passed and while no other
            training can change the bank.

    Raises:
        UserError: something to mend (see `plan.make_plan`, `Checkpoint.check_same_training`); nothing was changed.
        Cancelled: the monitor asked for it; a checkpoint is saved.
        TrainingDiverged: the loss is not finite; the last checkpoint is kept.
    """
    monitor = monitor or Monitor()
    layers = find_layers(denoiser.unet, config.layers)
    plan = make_plan(bank.refresh(), spec, config, layers, options.replace)
    planned_for = bank.manifest.generation
    with bank.training(wait_for_others(monitor)):
        if bank.manifest.generation != planned_for:
            plan = make_plan(bank, spec, config, layers, options.replace)
        encoded = data() if callable(data) else data
        if plan.full:
            monitor.message(describe_full_layers(plan.full, config.rank))
        run = _Run(denoiser, encoded, bank, plan, layers, monitor, options)
        concept = run.train()
        with suppress(OSError):  # a scanner may hold it; the concept is in the bank, and the file is of no use any more
            bank.checkpoint_path(spec.name).unlink(missing_ok=True)
    return concept


class _Run:
    """The state of one training."""

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
        parts = [(_to(adapters, denoiser.device), 1.0) for adapters in plan.earlier.values()]
        self.earlier = sum_adapters(parts)
        self.seen: Tensor | None = None  # which pictures of a batch are seen with them; None for all
        self.identity = {
            "base model": bank.manifest.base.fingerprint,
            "concept": [plan.spec.name, plan.spec.token, plan.spec.class_word],
            "data": data.fingerprint(),
            "concepts before it": list(plan.concepts),
            "coordinates of B": plan.coordinates,
        }
        self.losses: list[float] = []
        self.seconds = 0.0
        self.between_steps = True

    def train(self) -> Concept:
        path = self.bank.checkpoint_path(self.plan.spec.name)
        saved = self._resumable(path)
        with ExitStack() as stack:
            everywhere = find_layers(self.denoiser.unet)
            stack.enter_context(attach(everywhere, self.earlier, lambda: self.seen))
            self._set_up(saved)
            stack.enter_context(attach(self.layers, self.adapters))
            if self.config.gradient_checkpointing:
                stack.enter_context(self.denoiser.checkpointing())
            with self._saving_on_exit(path):
                self._loop(path)
                return self.bank.add(self._result(), replace=self.options.replace)

    def _resumable(self, path: Path) -> Checkpoint | None:
        if not (self.options.resume and path.is_file()):
            return None
        saved = Checkpoint.load(path)
        # Files of the version before do not name the base, and have the data as it was encoded.
        saved.identity.setdefault("base model", self.identity["base model"])
        if saved.identity.get("data") == self.data.encoded_fingerprint():
            saved.identity["data"] = self.identity["data"]
        if self.options.restart_if_changed and (difference := saved.difference(self.config, self.identity)):
            self.monitor.message(f"Beginning anew at step 0 instead of {saved.step}: {difference}.")
            return None
        saved.check_same_training(self.config, self.identity, path)
        self.monitor.message(f"Resuming at step {saved.step} of {self.config.steps}.")
        return saved

    def _set_up(self, saved: Checkpoint | None) -> None:
        """Factors, optimizers and objective: from the start, or as the checkpoint has them."""
        device, config, kept = self.denoiser.device, self.config, self._watch_kept()
        stepped = self.plan.coordinates == "contrastive"
        # A resumed training has its start; only the coordinates are to be made again.
        covariances = self._covariances() if stepped or not saved else {}
        directions = self._directions(covariances, kept)
        self.Q = [Q.float().to(device) for Q in self.plan.Q.values()]
        if saved:
            A, B = ([saved.tensors[f"{factor}.{name}"] for name in self.layers] for factor in "AB")
        else:
            A = [torch.zeros(layer.out_features, config.rank) for layer in self.layers.values()]
            B = self._start_bases(covariances, directions)
        # One memory layout, or a resumed training would take other kernels and round differently.
        A, B = ([factor.to(device).contiguous() for factor in factors] for factors in (A, B))
        self.lower = FactorOptimizer(A, config.optimizer, config.alpha, config.clip)
        along = [directions[name].float().to(device) for name in self.layers] if stepped and directions else None
        self.directions = fingerprint(directions) if along else ""
        self.upper = FactorOptimizer(B, config.optimizer, config.beta, config.clip, along)
        self.average = TailAverage(self.plan.first_averaged)
        self.adapters: dict[str, Adapter] = {}
        term = kept.crosstalk(self.plan.crosstalk) if kept and self.plan.crosstalk else None
        self.objective = DenoisingObjective(
            self.denoiser, self.adapters, list(self.layers), config.dtype, self.plan.ridge, term, self._show
        )
        self.step = 0
        if saved:
            self.step, self.losses, self.seconds = saved.step, saved.losses, saved.seconds
            self.objective.passes = saved.passes
            self.objective.loss_scale = saved.loss_scale or self.objective.loss_scale
            self.lower.load_state_tensors(saved.part("lower."))
            self.upper.load_state_tensors(self._upper_state(saved))
            self.average.load_state_tensors(saved.part("average."), device)

    def _upper_state(self, saved: Checkpoint) -> dict[str, Tensor]:
        """That of the upper optimizer, unless it is in other coordinates than this run's.

        They are made anew; inputs that are rounded otherwise turn some of them around, and mix those that matter alike.
        """
        state = saved.part("upper.")
        if not state or saved.directions in (None, self.directions):
            return state
        self.monitor.message(
            "The optimizer of the basis begins anew, because its coordinates came out otherwise than before the stop: "
            "another device, another number of threads and another version round otherwise."
        )
        return {}

    def _covariances(self) -> dict[str, Tensor]:
        """Of what every layer reads for the new concept, where that matters."""
        if not self.plan.reads_inputs:
            return {}
        own = dataclasses.replace(self.data, prior=())  # images of the class are not what the concept is about

        def read() -> None:
            heldout_loss(self.denoiser, own, self.config, _COVARIANCE_STEPS, self._stop_if_cancelled)

        inputs = capture_inputs(self.layers, read)
        return {name: layer.covariance for name, layer in inputs.items()}

    def _directions(self, covariances: Mapping[str, Tensor], kept: ProtectedInputs | None) -> dict[str, Tensor]:
        if not covariances or kept is None or not self.plan.contrasts:
            return {}
        made: dict[str, Tensor] = {}
        # Layers that read the same have the same directions, as long as no earlier concept takes any.
        keys = {name: name if Q.shape[1] else input_group(name) for name, Q in self.plan.Q.items()}
        for name, key in keys.items():
            if key not in made:
                self._stop_if_cancelled()  # a wide layer takes a second
                Q = self.plan.Q[name]
                made[key] = subspace.contrastive_directions(Q, covariances[name], kept.covariances[name])
        return {name: made[key] for name, key in keys.items()}

    def _start_bases(self, covariances: Mapping[str, Tensor], directions: Mapping[str, Tensor]) -> list[Tensor]:
        generator = self.plan.start_generator()
        return [
            self.plan.start_basis(name, generator, covariances.get(name), directions.get(name)) for name in self.layers
        ]

    def _watch_kept(self) -> ProtectedInputs | None:
        """What the model reads for other prompts, where this concept is to keep out of it."""
        prompts = self.data.keep
        if not (self.plan.crosstalk or self.plan.contrasts):
            return None
        if prompts is None:
            self.monitor.message("Without prompts to keep (see protected_prompts) other concepts are less protected.")
            return None
        self.monitor.message("Drawing earlier concepts and other prompts once, to keep out of their way.")
        return watch_protected(
            self.denoiser,
            self.layers,
            prompts,
            self.data.latent_size,
            self.config.seed,
            self.config.batch_size,
            self._stop_if_cancelled,
        )

    def _show(self, seen: Tensor | None) -> None:
        self.seen = seen

    def _stop_if_cancelled(self) -> None:
        if self.monitor.cancelled():
            raise Cancelled

    def _loop(self, path: Path) -> None:
        started, first = time.monotonic(), self.step
        seconds_before, last_saved = self.seconds, started
        while self.step < self.config.steps:
            self._stop_if_cancelled()
            self.between_steps = False
            self.losses.append(self._one_step())
            self.average.add(self.step, [*self.lower.parameters, *self.upper.parameters])
            self.step += 1
            self.between_steps = True
            now = time.monotonic()
            self.seconds = seconds_before + now - started
            left = (now - started) / (self.step - first) * (self.config.steps - self.step)
            if now - last_saved >= self.options.checkpoint_seconds:
                self._save(path)
                last_saved = now
            self.monitor.stepped(StepReport(self.step, self.config.steps, self.losses[-1], left))
            if self.options.preview_every and self.step % self.options.preview_every == 0:
                self.monitor.previewed(preview_latents(self.objective, self._factors(), self.data, self.config.seed))

    def _one_step(self) -> float:
        data, varies = self.data, self.plan.varies
        self.objective.minibatches = draw_minibatches(data, self.denoiser, self.config, self.step, varies)
        loss = None
        for _ in range(self.config.bilevel_iterations):
            value = self.plan.method.iterate(self.objective, self.lower, self.upper, self.Q, self.config)
            loss = value if loss is None else loss
        return loss

    @contextmanager
    def _saving_on_exit(self, path: Path) -> Iterator[None]:
        """Keep what was done when a training stops early, unless in the middle of a step: then A and B do not match."""
        try:
            yield
        except BaseException:
            if self.step and self.between_steps:
                self._save(path)
            raise

    def _save(self, path: Path) -> None:
        """Write a checkpoint; one that cannot be written is no reason to lose the training."""
        try:
            self._checkpoint().save(path)
        except OSError as error:
            self.monitor.message(
                f"The checkpoint {path} cannot be written ({error.strerror or error}), so a training that stops now "
                "does not resume here: free some space, or close what holds the file."
            )

    def _checkpoint(self) -> Checkpoint:
        tensors = {f"A.{name}": a for name, a in zip(self.layers, self.lower.parameters, strict=True)}
        tensors |= {f"B.{name}": b for name, b in zip(self.layers, self.upper.parameters, strict=True)}
        tensors |= {f"lower.{key}": value for key, value in self.lower.state_tensors().items()}
        tensors |= {f"upper.{key}": value for key, value in self.upper.state_tensors().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_tensors().items()}
        return Checkpoint(
            step=self.step,
            config=self.config,
            identity=self.identity,
            losses=self.losses,
            seconds=self.seconds,
            passes=self.objective.passes,
            loss_scale=self.objective.loss_scale,
            tensors=tensors,
            directions=self.directions,
        )

    def _factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """A and B as the concept has them if the training ends here."""
        kept = self.average.of([*self.lower.parameters, *self.upper.parameters])
        A, B = kept[: len(self.layers)], kept[len(self.layers) :]
        return A, [subspace.project(b, q) for b, q in zip(B, self.Q, strict=True)]

    def _result(self) -> NewConcept:
        tail = self.losses[-max(len(self.losses) // _FINAL_SHARE, 1) :]
        A, B = self._factors()
        B = [subspace.reproject_if_needed(b.cpu(), Q) for b, Q in zip(B, self.plan.Q.values(), strict=True)]
        return NewConcept(
            name=self.plan.spec.name,
            token=self.plan.spec.token,
            class_word=self.plan.spec.class_word,
            rank=self.config.rank,
            method=self.config.method,
            adapters={name: Adapter.from_factors(a.cpu(), b) for name, a, b in zip(self.layers, A, B, strict=True)},
            config=self.config.as_dict(),
            metrics={
                "first_loss": self.losses[0],
                "final_loss": sum(tail) / len(tail),
                "loss_curve": _curve(self.losses),
                "steps": self.step,
                "passes": self.objective.passes,
                "seconds": round(self.seconds, 2),
                "device": str(self.denoiser.device),
                "images": len(self.data.examples),
                "data": self.identity["data"],
            },
            thumbnail=self.options.thumbnail,
        )


def _curve(losses: list[float]) -> list[float]:
    """At most `_CURVE_POINTS` means of consecutive losses: enough to draw, little to keep in every manifest."""
    stride = -(-len(losses) // _CURVE_POINTS)
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [round(sum(part) / len(part), 6) for part in parts]


def _to(adapters: Mapping[str, Adapter], device: torch.device) -> dict[str, Adapter]:
    return {name: adapter.to(device) for name, adapter in adapters.items()}
