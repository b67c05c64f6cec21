"""What a training run will do, checked before anything expensive starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import subspace
from ..bank import Bank, Concept, ConceptSpec
from ..data.words import Words
from ..errors import UserError
from ..model.adapters import Adapter
from ..model.sd15 import in_preset
from ..randomness import named_generator
from .config import OF_THE_WORD, ResolvedConfig, TrainingConfig
from .methods import METHODS, Method
from .protected_prompts import protected_prompts


@dataclass(frozen=True)
class TrainingPlan:
    """The layers to adapt, the room left in them, and the model to train on.

    Attributes:
        requested: what the user asked for; `config` is what it was resolved to.
        Q: per layer, [n, k] float64, what B has to be orthogonal to; empty in an unconstrained training run.
        earlier: adapters of the earlier concepts that are part of the model while training.
        prompts: the protected prompts (see `protected_prompts`).
        words: the learned words of the bank's other concepts, which prompts may name.
        full: layers of the preset without room for the rank.
        damaged: a sentence for each concept of the bank one of whose files cannot be used.
        concepts: ids of the bank's concepts that this training run depends on.
    """

    spec: ConceptSpec
    requested: TrainingConfig
    config: ResolvedConfig
    Q: Mapping[str, Tensor]
    earlier: Mapping[str, Mapping[str, Adapter]]
    prompts: tuple[str, ...]
    words: Words
    full: tuple[str, ...]
    damaged: tuple[str, ...]
    concepts: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was decided and found."""
        if self.requested.steps is not None:
            return self.damaged
        return (f"The setting steps is {self.config.steps}, chosen by the number of images.", *self.damaged)

    @property
    def method(self) -> Method:
        """The training method."""
        return METHODS[self.config.method]

    @property
    def contrasts(self) -> bool:
        """Whether the start or the coordinates of B depend on what layers receive for the protected prompts."""
        return "contrastive" in (self.config.init, self.config.coordinates)

    @property
    def needs_inputs(self) -> bool:
        """Whether B depends on what the layers receive for the new concept."""
        return self.config.init != "random" or self.method.needs_inputs or self.contrasts

    @property
    def word_steps(self) -> int:
        """Steps that learn the word, of one pass each, where the factors' steps take several."""
        if not self.config.learns_word:
            return 0
        return round(self.config.token_share * self.config.steps * self._passes_per_step)

    @property
    def steps(self) -> int:
        """Steps of the factors: those whose passes the word has left."""
        return max(self.config.steps - round(self.word_steps / self._passes_per_step), 1)

    def passes_left(self, word_step: int, step: int) -> int:
        """Passes of the run after these finished steps of the word and of the factors."""
        return self.word_steps - word_step + (self.steps - step) * self._passes_per_step

    @property
    def _passes_per_step(self) -> int:
        return self.method.passes(self.config) * self.config.bilevel_iterations

    @property
    def first_averaged(self) -> int:
        """The first step, from 0, that the mean of the factors counts; the number of steps if none is taken."""
        return self.steps - round(self.config.average * self.steps)

    def start_generator(self) -> torch.Generator:
        """Random numbers for all first bases: the concept's own, or all of a bank's concepts would start alike.

        Columns drawn without replacement come from one shuffled order that all concepts share.
        """
        if self.config.method == "orthogonal" and not self.config.draws_independently:
            return torch.Generator().manual_seed(self.config.seed)
        return named_generator(self.config.seed, "start", self.spec.name)

    def start_basis(
        self, layer: str, generator: torch.Generator, covariance: Tensor | None, directions: Tensor | None
    ) -> Tensor:
        """The first B [n, r] of a layer, float32 (see `Method.start`)."""
        if self.config.init != "contrastive":
            directions = None
        if self.config.init == "random" and not self.method.needs_inputs:
            covariance = None
        return self.method.start(self.Q[layer], self.config, generator, covariance, directions).float()


def trained_subject(spec: ConceptSpec, config: TrainingConfig) -> str:
    """The words for a new concept in its prompts: its token alone where that is to be learned, else "sksdog dog"."""
    return spec.token if config.learns_word else spec.subject


def already_trained(bank: Bank, spec: ConceptSpec, config: ResolvedConfig, data_fingerprint: str) -> Concept | None:
    """The bank's concept of that name, if it was trained on the same data with the same resolved settings."""
    concept = bank.manifest.find(spec.name)
    if concept is None or not concept.settings:
        return None
    made_from = (concept.token, concept.class_word, concept.provenance.data)
    if made_from != (spec.token, spec.class_word, data_fingerprint):
        return None
    # A concept from before there were learned words has a rare word: it is trained all the same.
    own = {name: value for name, value in config.as_dict().items() if name in OF_THE_WORD}
    try:
        stored = ResolvedConfig.from_dict({**own, **concept.settings})
    except (UserError, TypeError, ValueError):  # damaged, or of another program: nobody knows what it was trained with
        return None
    return concept if config.makes_the_same(stored) else None


def next_version(bank: Bank, spec: ConceptSpec, config: ResolvedConfig, data_fingerprint: str) -> ConceptSpec:
    """The first of "NAME", "NAME v2", "NAME v3" ... that is free, or holds what this training run would make."""
    candidate, number = spec, 2
    while bank.manifest.find(candidate.name) and not already_trained(bank, candidate, config, data_fingerprint):
        candidate, number = ConceptSpec(f"{spec.name} v{number}", spec.token, spec.class_word), number + 1
    return candidate


def make_plan(
    bank: Bank,
    spec: ConceptSpec,
    requested: TrainingConfig,
    config: ResolvedConfig,
    adaptable: Mapping[str, object],
    replace: bool = False,
) -> TrainingPlan:
    """Look at the bank and decide.

    Args:
        adaptable: the base's layers of the preset, by canonical name.
        replace: the concept of that name, if any, is about to go: neither trained on nor avoided.

    Raises:
        UserError: the name is taken, the base has other layers than the bank, or no layer has room.
    """
    if not replace:
        bank.require_free(spec.name)
    unknown = [layer for layer in adaptable if layer not in bank.manifest.layers]
    if unknown:
        raise UserError(f"The bank {bank.folder} has no layer {unknown[0]}: it belongs to another kind of UNet.")
    loaded, damaged = bank.load_intact(without=spec.name)
    occupied = _to_avoid(bank, loaded, config)
    free = {layer: occupied[layer].shape[0] - occupied[layer].shape[1] for layer in adaptable}
    full = tuple(layer for layer in adaptable if free[layer] < config.rank)
    if len(full) == len(free):
        raise UserError(
            f"No layer has room for rank {config.rank}: at most {max(free.values())} directions are free. "
            "Choose a smaller rank, remove a concept, or start another bank."
        )
    replaced = bank.manifest.find(spec.name)
    others = [concept for concept in bank.concepts if concept is not replaced]
    return TrainingPlan(
        spec=spec,
        requested=requested,
        config=config,
        Q={layer: occupied[layer] for layer in adaptable if layer not in full},
        earlier={} if config.train_on == "bare" else loaded,
        prompts=tuple(protected_prompts(others, spec.class_word)),
        words=bank.words(others, damaged),
        full=full,
        damaged=tuple(f"{problem} Its directions cannot be avoided." for problem in damaged),
        concepts=tuple(concept.id for concept in others),
    )


def _to_avoid(bank: Bank, loaded: Mapping[str, Mapping[str, Adapter]], config: ResolvedConfig) -> dict[str, Tensor]:
    """Per layer, `Q [n, k]` of the loaded concepts that the new one must be orthogonal to."""
    if METHODS[config.method].constrained and not config.draws_independently:
        return bank.spanned_by(loaded)
    return {layer: subspace.empty(shape.width) for layer, shape in bank.manifest.layers.items()}


def full_layers(bank: Bank, concept: Concept) -> list[str]:
    """The layers of a trained concept's preset that had no room for it, by canonical name."""
    preset = concept.settings.get("layers")
    return [layer for layer in concept.layers_skipped if preset and in_preset(layer, preset)]


def describe_full_layers(full: Sequence[str], rank: int) -> str:
    """The sentence about layers that a concept does not act on."""
    return (
        f"{len(full)} layers had no room for rank {rank} next to the bank's other concepts and are left out "
        f"(for example {min(full, key=len)})."
    )
