"""The training run of one concept: from encoded examples to a concept in the bank."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn, zeros

from .. import subspace
from ..bank import Bank, Concept, ConceptSpec, NewConcept, Provenance
from ..data.dataset import EncodedConcept
from ..data.words import Words
from ..errors import UserError
from ..hashing import fingerprint
from ..model.adapters import Adapter
from ..model.denoiser import Denoiser
from ..model.sd15 import find_layers
from ..model.text_encoder import TextEncoder
from ..monitor import Monitor, wait_for_others
from .checkpoint import Checkpoint, Expected, resumable_checkpoint
from .config import OWN_WORDS, ResolvedConfig, TrainingConfig
from .distributed import Processes
from .earlier_concepts import EarlierConcepts
from .held_out import HeldOutLosses, held_out_loss
from .initialization import Start, measure_start
from .minibatches import draw_minibatches
from .objective import DenoisingObjective, check_base_is_finite
from .own_rows import mark_own_rows
from .plan import TrainingPlan, describe_full_layers, make_plan
from .preview import preview_latents, show_preview, with_preview_prompt
from .progress import Progress, loss_curve, mean_of_tenth
from .run_options import RunOptions
from .safeguards import check_not_exploded, read_loss, undone_if_interrupted
from .schedule import learning_rate_factor
from .state import TrainingState
from .token_embedding import WordState, WordTraining, check_names_word


def train_concept(
    denoiser: Denoiser,
    encode: Callable[[Sequence[str], Words], EncodedConcept],
    bank: Bank,
    spec: ConceptSpec,
    config: ResolvedConfig,
    monitor: Monitor | None = None,
    options: RunOptions | None = None,
    requested: TrainingConfig | None = None,
    text_encoder: TextEncoder | None = None,
) -> Concept:
    """Train a concept on a frozen UNet and add it to the bank.

    The UNet is not changed: adapters act on the outputs of its layers while this function runs.  A checkpoint is
    written at intervals and whenever the run stops early, for whatever reason, at the end of a step.

    Args:
        encode: called once, after all checks have passed and while no other training run can change the bank, with the
            protected prompts and the vectors of the bank's learned words, which they name; returns the concept's images
            and these prompts, encoded.  The concept's own word is encoded again as it is learned.
        text_encoder: where the word is learned and found in prompts; not needed with `config.token_vectors` 0,
            `config.acts_on` "everything" and no `options.preview_prompt`.
        requested: what `config` was resolved from, stored for display.

    The concept's word is learned first, on the base model alone, then its factors with the word as it is (see
    `token_embedding`); `config.token_share` divides the passes.

    Raises:
        ValueError: the text encoder is needed and not given.
        UserError: something to fix (see `make_plan`, `Checkpoint.check_same_run`); nothing was changed.
        Cancelled: the monitor asked for it; a checkpoint is saved.
        TrainingDiverged: the loss or a factor is not finite; the last checkpoint is kept.
        TrainingExploded: the loss ended far above where it began; `options.store_anyway` stores it from the checkpoint.
    """
    options = options or RunOptions()
    if text_encoder is None and (config.learns_word or config.acts_on == OWN_WORDS or options.preview_prompt):
        raise ValueError("A word is learned, and prompts are encoded, with a text encoder.")
    monitor, requested = monitor or Monitor(), requested or config
    if options.processes.count > 1 and (config.method, config.hypergradient) == ("seqlora", "exact"):
        raise UserError("The exact hypergradient trains in one process only: choose lookahead, or start one process.")
    layers = find_layers(denoiser.unet, config.layers)
    plan = make_plan(bank.refresh(), spec, requested, config, layers, options.replace)
    planned_for = bank.manifest.generation
    for note in bank.check_words(spec, options.vocabulary):
        monitor.message(note)
    with _the_only_run(bank, monitor, options.processes):
        if bank.manifest.generation != planned_for:
            plan = make_plan(bank, spec, requested, config, layers, options.replace)
        for note in plan.notes:
            monitor.message(note)
        if text_encoder is not None:
            bank.check_text_encoder(text_encoder.fingerprint())
        data = encode(plan.prompts, plan.words)
        if options.preview_every and options.preview_prompt:
            data = with_preview_prompt(data, options.preview_prompt, text_encoder, plan.words)
        if plan.full:
            monitor.message(describe_full_layers(plan.full, config.rank))
        concept = _Run(denoiser, data, bank, plan, layers, monitor, options, text_encoder).train()
        if options.processes.is_first:
            bank.discard_checkpoint(spec.name)
    return concept


@contextmanager
def _the_only_run(bank: Bank, monitor: Monitor, processes: Processes) -> Iterator[None]:
    """Be the only training run in a bank; the first process holds the lock for all."""
    with bank.training(wait_for_others(monitor)) if processes.is_first else nullcontext():
        processes.agree()
        if not processes.is_first:
            bank.refresh()
        yield
        processes.agree()


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
        text_encoder: TextEncoder | None,
    ) -> None:
        self.denoiser, self.data, self.bank, self.plan = denoiser, data, bank, plan
        self.monitor, self.options, self.config, self.processes = monitor, options, plan.config, options.processes
        self.text_encoder = text_encoder
        self.layers = {name: layers[name] for name in plan.Q}
        self.Q = [Q.float().to(denoiser.device) for Q in plan.Q.values()]
        self.word: WordTraining | None = None
        if self.config.learns_word:
            check_names_word((text for example in data.examples for text in example.texts), plan.spec.token)
            self.word = WordTraining(
                denoiser, text_encoder, data, plan.spec, self.config, plan.words, options.first_word, options.processes
            )
        self.progress, self.held_out = Progress(plan, monitor), HeldOutLosses()
        self.preview_seed = self.config.seed if options.preview_seed is None else options.preview_seed
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
        done = (saved.word_step, saved.step) if saved else (0, 0)
        self.processes.check_same(f"{self.identity} {self.config} {done}")
        check_base_is_finite(self.denoiser, self.data, self.config)
        if self.word is not None:
            self._learn_word(self.word, saved)
            self.data = self.word.encoded()
        if self.config.acts_on == OWN_WORDS:
            own = {} if self.word is None else {self.plan.spec.token: self.word.state.vectors}
            words = {**self.plan.words, **own}
            self.data = mark_own_rows(self.data, self.plan.spec, self.config, self.text_encoder, words)
        earlier = EarlierConcepts(self.plan.earlier.values(), self.denoiser.device)
        with earlier.attached(self.denoiser.unet):
            resumed = saved if saved and saved.has_factors else None
            start = measure_start(self.denoiser, self.data, self.plan, self.layers, self.monitor, bool(resumed))
            start.take_from_the_first(self.processes)
            objective = DenoisingObjective(
                self.denoiser, self.layers, self.config.dtype, self.config.ridge, start.penalty, earlier, self.processes
            )
            state = self._begin(start, objective, resumed)
            sparing = self.denoiser.checkpointing() if self.config.gradient_checkpointing else nullcontext()
            self.monitor.stage("training", self.plan.word_steps + state.step, self.plan.word_steps + self.plan.steps)
            with objective.attached(), sparing, self._saving_on_exit(lambda: self._save(state, objective)):
                self._all_steps(state, objective)
                check_not_exploded(state.losses, self.options.store_anyway, self.monitor)
                return self._store(state, objective)

    def _store(self, state: TrainingState, objective: DenoisingObjective) -> Concept:
        """Add the concept to the bank, which the first process does."""
        with self.processes.after_the_first():
            if self.processes.is_first:
                return self.bank.add(self._result(state, objective), replace=self.options.replace)
            return self.bank.refresh().concept(self.plan.spec.name)

    def _learn_word(self, word: WordTraining, saved: Checkpoint | None) -> None:
        """All steps of the word, on the base model without the bank's concepts."""
        state = word.state
        if saved:
            state.restore(saved.tensors)
            state.step, state.losses = saved.word_step, saved.word_losses
            word.objective.passes = saved.word_step * self.config.accumulation
            state.seconds = 0.0 if saved.has_factors else saved.seconds
        if state.step >= self.plan.word_steps:
            return
        sparing = self.denoiser.checkpointing() if self.config.gradient_checkpointing else nullcontext()
        self.monitor.stage("learning the word", state.step, self.plan.word_steps + self.plan.steps)
        with sparing, word.encoder.loaded(), self._saving_on_exit(lambda: self._save_word(word)):
            if state.step == 0:
                self._preview_word(word)
            for _ in self._timed(state, self.plan.word_steps, lambda: self._save_word(word)):
                with undone_if_interrupted(state, word.objective):
                    word.step()
                self.progress.report(state.step, 0, state.losses[-1])
                self._preview_word(word)
        self._save_word(word)  # what comes next may take minutes

    def _preview_word(self, word: WordTraining) -> None:
        if self.processes.is_first and self.options.preview_is_due(step := word.state.step):
            latents = preview_latents(word.objective, ([], []), word.encoded(), self.preview_seed)
            show_preview(self.monitor, latents, step)

    def _preview(self, state: TrainingState, objective: DenoisingObjective) -> None:
        if self.processes.is_first and self.options.preview_is_due(step := self.plan.word_steps + state.step):
            latents = preview_latents(objective, self._factors(state), self.data, self.preview_seed)
            show_preview(self.monitor, latents, step)

    def _measure_held_out(self, state: TrainingState, objective: DenoisingObjective) -> None:
        is_measured = self.processes.is_first and self.data.held_out
        if not (is_measured and self.held_out.is_due(state.step, self.plan.steps)):
            return
        loss = held_out_loss(objective, self._factors(state), self.data, self.config.seed)
        if math.isfinite(loss):
            self.held_out.losses[state.step] = loss
            self.monitor.held_out(self.plan.word_steps + state.step, loss)

    def _all_steps(self, state: TrainingState, objective: DenoisingObjective) -> None:
        if self.plan.word_steps + state.step == 0:
            self._preview(state, objective)
        for _ in self._timed(state, self.plan.steps, lambda: self._save(state, objective)):
            self._measure_held_out(state, objective)
            state.scale_step_sizes(learning_rate_factor(self.config, state.step, self.plan.steps))
            with undone_if_interrupted(state, objective):
                objective.use(draw_minibatches(self.data, self.denoiser, self.config, state.step))
                state.finish_step(read_loss(objective, self._iterate(objective, state), state))
            self.progress.report(self.plan.word_steps, state.step, state.losses[-1])
            self._preview(state, objective)
        self._measure_held_out(state, objective)

    def _timed(self, state: TrainingState | WordState, steps: int, save: Callable[[], None]) -> Iterator[None]:
        """One round per step that is left, each after a check for Cancel; counts seconds and writes checkpoints."""
        started, before = time.monotonic(), state.seconds
        last_saved = started
        while state.step < steps:
            self.monitor.stop_if_cancelled()
            yield
            now = time.monotonic()
            state.seconds = before + now - started
            if now - last_saved >= self.options.checkpoint_seconds:
                save()
                last_saved = now

    def _iterate(self, objective: DenoisingObjective, state: TrainingState) -> Tensor | float:
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
            self.processes.take_from_the_first(B)
        along = start.coordinates(self.plan, device)
        state = TrainingState.begin(A, B, self.config, self.plan.first_averaged, along, device)
        state.coordinates = fingerprint(start.directions) if along else ""
        if self.word is not None:
            state.seconds, objective.passes = self.word.state.seconds, self.word.objective.passes
        if saved:
            state.step, state.losses, state.seconds = saved.step, saved.losses, saved.seconds
            self.held_out = HeldOutLosses.from_record(saved.held_out)
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
        word = None if self.word is None else tuple(self.word.state.vectors.shape)
        expected = Expected(shapes, self.plan.steps, word, self.plan.word_steps)
        return resumable_checkpoint(self.path, self.config, self.identity, self.data, restart, self.monitor, expected)

    @contextmanager
    def _saving_on_exit(self, save: Callable[[], None]) -> Iterator[None]:
        """Keep the finished steps of a run that stops early, also if its result cannot be stored."""
        try:
            yield
        except BaseException:
            save()
            raise

    def _save(self, state: TrainingState, objective: DenoisingObjective) -> None:
        if state.step:
            word = self.word.state.state_dict() if self.word is not None else {}
            tensors = {**word, **state.state_dict(list(self.layers))}
            self._write(tensors, state.seconds, objective, state)
        elif self.word is not None:
            self._save_word(self.word)

    def _save_word(self, word: WordTraining) -> None:
        if word.state.step:
            self._write(word.state.state_dict(), word.state.seconds, word.objective)

    def _write(
        self,
        tensors: Mapping[str, Tensor],
        seconds: float,
        objective: DenoisingObjective,
        state: TrainingState | None = None,
    ) -> None:
        """Write a checkpoint; one that cannot be written is no reason to lose the run."""
        if not self.processes.is_first:
            return
        checkpoint = Checkpoint(
            step=state.step if state else 0,
            config=self.config,
            identity=self.identity,
            losses=state.losses if state else [],
            seconds=seconds,
            passes=objective.passes,
            loss_scale=objective.loss_scale,
            tensors=dict(tensors),
            directions=state.coordinates if state else None,
            word_step=self.word.state.step if self.word else 0,
            word_losses=self.word.state.losses if self.word else [],
            held_out=self.held_out.record(),
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
        done = (self.word.state.step if self.word else 0) + (state.step if state else 0)
        self.monitor.checkpointed(done, self.plan.word_steps + self.plan.steps, written)

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
            word=self.word.state.vectors.cpu() if self.word is not None else None,
            text_encoder=self.word.encoder.fingerprint() if self.word is not None else "",
            metrics={
                "first_loss": state.losses[0],
                "final_loss": mean_of_tenth(state.losses, last=True),
                "loss_curve": loss_curve(state.losses),
                **({"word_loss_curve": loss_curve(self.word.state.losses)} if self.word is not None else {}),
                "steps": self.plan.word_steps + state.step,
                "passes": objective.passes,
                "seconds": round(state.seconds, 2),
                "device": str(self.denoiser.device),
                "images": len(self.data.examples),
                **self.held_out.metrics(),
            },
            thumbnail=self.options.thumbnail,
        )
