"""What a training will do, checked before anything expensive starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import subspace
from ..bank import Bank, Concept
from ..bank.spec import ConceptSpec
from ..errors import UserError
from ..model.adapters import Adapter
from ..model.sd15 import in_preset
from ..randomness import named_generator
from .config import TrainingConfig
from .methods import METHODS, Method


@dataclass(frozen=True)
class TrainingPlan:
    """The layers to adapt, the room that is left in them, and the model to train on.

    Attributes:
        Q: per layer, [n, k] float64, what B has to be orthogonal to; in an unconstrained training it is empty.
        earlier: the adapters of earlier concepts that are part of the model while training.
        varies: whether every other picture is seen without `earlier` (ours); a concept that is always trained with it
            leans on it, and is not itself in another selection.
        full: layers of the preset that have no room for the rank.
        concepts: ids of the bank's concepts that this training depends on.
    """

    spec: ConceptSpec
    config: TrainingConfig
    Q: Mapping[str, Tensor]
    earlier: Mapping[str, Mapping[str, Adapter]]
    varies: bool
    full: tuple[str, ...]
    concepts: tuple[str, ...]

    @property
    def method(self) -> Method:
        """The training method."""
        return METHODS[self.config.method]

    @property
    def init(self) -> str:
        """Where a learned basis starts."""
        return self.method.init if self.config.init == "auto" else self.config.init

    @property
    def coordinates(self) -> str:
        """In which B is stepped: "plain", as published, or "contrastive" (ours), along `contrastive_directions`.

        A step along any of those costs others the same.  What only the new concept reads is a small part of its inputs,
        and plain coordinates hold it at the pace of the large part that all read alike.
        """
        return self.method.coordinates if self.config.coordinates == "auto" else self.config.coordinates

    @property
    def contrasts(self) -> bool:
        """Whether it matters for B what the prompts to keep read."""
        return "contrastive" in (self.init, self.coordinates)

    @property
    def reads_inputs(self) -> bool:
        """Whether B depends on what the layers read for the new concept."""
        return self.init != "random" or self.method.reads_inputs or self.contrasts

    @property
    def crosstalk(self) -> float:
        """Weight of the crosstalk term of this training."""
        return self._own("crosstalk")

    @property
    def ridge(self) -> float:
        """Weight of the ridge term of this training."""
        return self._own("ridge")

    @property
    def first_averaged(self) -> int:
        """The first step, from 0, that the mean of the factors counts; the number of steps where none is taken."""
        return self.config.steps - round(self._own("average") * self.config.steps)

    def start_generator(self) -> torch.Generator:
        """The random numbers of all first bases: the concept's own, or a bank's concepts would begin with one draw.

        Columns that are drawn without replacement come from one shuffled order, which all concepts share.
        """
        if self.config.method == "orthogonal" and not self.config.draws_independently:
            return torch.Generator().manual_seed(self.config.seed)
        return named_generator(self.config.seed, "start", self.spec.name)

    def _own(self, name: str) -> float:
        """A setting, or what the method does where it is None."""
        value = getattr(self.config, name)
        return getattr(self.method, name) if value is None else value

    def start_basis(
        self, layer: str, generator: torch.Generator, covariance: Tensor | None, directions: Tensor | None
    ) -> Tensor:
        """The first B [n, r] of a layer, float32 (see `Method.start`)."""
        if self.init != "contrastive":
            directions = None
        if self.init == "random" and not self.method.reads_inputs:
            covariance = None
        return self.method.start(self.Q[layer], self.config, generator, covariance, directions).float()


def already_trained(bank: Bank, spec: ConceptSpec, config: TrainingConfig, data_fingerprint: str) -> Concept | None:
    """The bank's concept of that name, if it came from the same data with the same settings."""
    concept = bank.manifest.find(spec.name)
    if concept is None:
        return None
    same = (concept.token, concept.class_word, concept.metrics.get("data")) == (
        spec.token,
        spec.class_word,
        data_fingerprint,
    )
    return concept if same and config.asks_for_the_same(TrainingConfig.from_dict(concept.config)) else None


def next_version(bank: Bank, spec: ConceptSpec, config: TrainingConfig, data_fingerprint: str) -> ConceptSpec:
    """The first of "NAME", "NAME v2", "NAME v3" ... that is free, or holds what this training would make."""
    candidate, number = spec, 2
    while bank.manifest.find(candidate.name) and not already_trained(bank, candidate, config, data_fingerprint):
        candidate, number = ConceptSpec(f"{spec.name} v{number}", spec.token, spec.class_word), number + 1
    return candidate


def check_new_name(bank: Bank, spec: ConceptSpec, replace: bool) -> None:
    """Raises UserError where the name is taken (and is not to be replaced)."""
    existing = bank.manifest.find(spec.name)
    if existing is not None and not replace:
        raise UserError(f"The bank already has a concept {existing.name!r}: choose another name, or have it replaced.")


def make_plan(
    bank: Bank, spec: ConceptSpec, config: TrainingConfig, adaptable: Mapping[str, object], replace: bool = False
) -> TrainingPlan:
    """Look at the bank and decide.

    Args:
        adaptable: the base's layers of the preset, by canonical name.
        replace: the concept of that name, if any, is about to go: neither trained on nor avoided.

    Raises:
        UserError: the name is taken, the base has other layers than the bank, or no layer has room.
    """
    check_new_name(bank, spec, replace)
    unknown = [layer for layer in adaptable if layer not in bank.manifest.layers]
    if unknown:
        raise UserError(f"The bank {bank.folder} knows no layer {unknown[0]}: it belongs to another kind of UNet.")
    method = METHODS[config.method]
    occupied = bank.occupied(without=spec.name)
    if not method.constrained or config.draws_independently:
        occupied = {layer: subspace.empty(Q.shape[0]) for layer, Q in occupied.items()}
    free = {layer: occupied[layer].shape[0] - occupied[layer].shape[1] for layer in adaptable}
    full = tuple(layer for layer in adaptable if free[layer] < config.rank)
    if len(full) == len(free):
        raise UserError(
            f"No layer has room for rank {config.rank}: at most {max(free.values())} directions are free. "
            "Choose a smaller rank, remove a concept, or start another bank."
        )
    replaced = bank.manifest.find(spec.name)
    kept = [concept for concept in bank.concepts if concept is not replaced]
    base = method.base if config.train_on == "auto" else config.train_on
    return TrainingPlan(
        spec=spec,
        config=config,
        Q={layer: occupied[layer] for layer in adaptable if layer not in full},
        earlier={} if base == "bare" else bank.load(kept),
        varies=base == "subsets",
        full=full,
        concepts=tuple(concept.id for concept in kept),
    )


def full_layers(bank: Bank, concept: Concept) -> list[str]:
    """The layers of a trained concept's preset that had no room for it, by canonical name."""
    preset = concept.config.get("layers")
    return [layer for layer in concept.layers_skipped if preset and in_preset(layer, preset)]


def describe_full_layers(full: Sequence[str], rank: int) -> str:
    """The sentence about layers that a concept does not act on."""
    return (
        f"{len(full)} layers had no room for rank {rank} beside the bank's other concepts and are left out "
        f"(for example {min(full, key=len)})."
    )
