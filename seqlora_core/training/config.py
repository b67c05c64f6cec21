"""The frozen settings of one training."""

import dataclasses
import math
from dataclasses import dataclass

from ..errors import UserError

HYPERGRADIENTS = ("lookahead", "finite-difference", "exact")
METHODS = ("seqlora", "alternating", "orthogonal", "inflora", "lora")
LOWER_STEPS = ("auto", "kept", "again")
OPTIMIZERS = ("adam", "gradient")
LAYER_PRESETS = ("all", "cross", "cross-kv")
INITS = ("auto", "random", "spectral", "contrastive")
COORDINATES = ("auto", "plain", "contrastive")
TRAIN_ON = ("auto", "subsets", "accumulated", "bare")
DTYPES = ("float32", "bfloat16", "float16")
SPARE_MEMORY = ("gradient_checkpointing",)  # settings that take time for it, and change nothing that is computed
LARGEST_SEED = 2**62  # pictures of one prompt count on from it, and torch has 64 bits


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training computes.  Stored with every concept.

    Step sizes `alpha` (coefficients A, the lower level) and `beta` (basis B, the upper level) are those of
    eqs. 8 and 17 with `optimizer="gradient"`, and Adam's learning rates with `optimizer="adam"`.

    Raises:
        UserError: a value is out of range; the message names the setting.
    """

    method: str = "seqlora"
    hypergradient: str = "lookahead"
    optimizer: str = "adam"
    alpha: float = 1e-3
    beta: float = 1e-3
    rank: int = 4
    steps: int = 800
    batch_size: int = 1
    accumulation: int = 1  # micro-batches per step; every hypergradient sees all of them
    bilevel_iterations: int = 1  # of Algorithm 1, on one minibatch
    inner_steps: int = 1  # lower-level steps in each of them
    lower_step: str = "auto"  # eq. 8's is "kept", or taken "again" at the new B (eq. 18); "auto" keeps with lookahead
    # None is what the method does
    ridge: float | None = None  # eps of the term eps/2 (|A|^2 + |B|^2)
    crosstalk: float | None = None  # weight of what each prompt to keep would notice
    average: float | None = None  # share of the steps, the last, over which the factors are averaged
    clip: float = 1.0  # bound on the norm of each factor's whole gradient; 0 turns it off
    # "auto" is what the method does
    init: str = "auto"
    coordinates: str = "auto"
    layers: str = "cross-kv"
    train_on: str = "auto"
    draw: str = "without-replacement"  # of the orthogonal method's columns; "independent" is its paper's
    prior_weight: float = 1.0
    resolution: int = 512
    crop: str = "center"
    flip: bool = False
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of(self, "method", METHODS)
        _one_of(self, "hypergradient", HYPERGRADIENTS)
        _one_of(self, "lower_step", LOWER_STEPS)
        _one_of(self, "optimizer", OPTIMIZERS)
        _one_of(self, "init", INITS)
        _one_of(self, "layers", LAYER_PRESETS)
        _one_of(self, "coordinates", COORDINATES)
        _one_of(self, "train_on", TRAIN_ON)
        _one_of(self, "draw", ("without-replacement", "independent"))
        _one_of(self, "crop", ("center", "random"))
        _one_of(self, "dtype", DTYPES)
        for name in ("rank", "steps", "batch_size", "accumulation", "bilevel_iterations", "inner_steps"):
            _at_least(self, name, 1)
        for name in ("clip", "prior_weight", "seed"):
            _at_least(self, name, 0)
        if self.seed > LARGEST_SEED:
            raise UserError(f"seed must be at most {LARGEST_SEED}, not {self.seed}.")
        for name in ("ridge", "crosstalk"):
            if getattr(self, name) is not None:
                _at_least(self, name, 0)
        if self.average is not None and not 0 <= self.average <= 1:
            raise UserError(f"average must be a share between 0 and 1, not {self.average}.")
        for name in ("alpha", "beta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name} must be a number above 0, not {getattr(self, name)}.")
        if self.resolution < 8 or self.resolution % 8:
            raise UserError(f"resolution must be a multiple of 8 pixels, not {self.resolution}.")
        if self.lower_step == "kept" and self.hypergradient != "lookahead":
            raise UserError(
                f"The lower step can be kept with the lookahead hypergradient alone, not with {self.hypergradient}: "
                "choose one of the two anew."
            )
        if self.hypergradient == "exact" and self.dtype == "float16" and self.method == "seqlora":
            raise UserError(
                "The exact hypergradient loses small gradients in float16: choose lookahead, or bfloat16 or float32."
            )
        if self.hypergradient == "exact" and self.gradient_checkpointing and self.method == "seqlora":
            raise UserError(
                "The exact hypergradient differentiates twice, which gradient checkpointing does not allow: "
                "choose lookahead, or switch gradient checkpointing off."
            )

    @property
    def keeps_lower_step(self) -> bool:
        """Whether an iteration of `seqlora` keeps the lower steps of eq. 8 (see `bilevel.reusing_iteration`)."""
        return self.lower_step == "kept" or (self.lower_step == "auto" and self.hypergradient == "lookahead")

    @property
    def draws_independently(self) -> bool:
        """Whether bases are drawn as Orthogonal Adaptation draws them: without regard to what others hold."""
        return self.method == "orthogonal" and self.draw == "independent"

    def as_dict(self) -> dict:
        """The settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainingConfig":
        """The settings from `as_dict`; names that this version does not know are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def asks_for_the_same(self, other: "TrainingConfig") -> bool:
        """Whether both settings make the same concept; in which precision and memory is the machine's affair."""
        own, others = self.as_dict(), other.as_dict()
        return all(own[name] == others[name] for name in own if name not in ("dtype", *SPARE_MEMORY))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items())


def _one_of(config: TrainingConfig, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, not {getattr(config, name)!r}.")


def _at_least(config: TrainingConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if not (math.isfinite(value) and value >= least):
        raise UserError(f"{name} must be at least {least}, not {value}.")
