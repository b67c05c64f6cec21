"""The settings of one training run: as a user asks for them, and resolved to what is computed.

Every setting carries its help, choices and bounds as field metadata; the command line and the nodes make their options
from it, and `TrainingConfig` checks its values against it.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError
from .extra_settings import ExtraSettings
from .setting import LARGEST_WHOLE_NUMBER, check_setting, is_text, setting

HYPERGRADIENT_NAMES = ("lookahead", "finite-difference", "exact")
METHOD_NAMES = ("seqlora", "alternating", "orthogonal", "inflora", "lora", "c-lora")
LAYER_PRESETS = ("all", "cross", "cross-kv")
_CROPS = ("center", "random")
DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SEED = LARGEST_WHOLE_NUMBER  # images of one prompt count on from it, and torch has 64 bits
# Settings of the machine, not of the concept: two runs that differ in these alone make the same concept.
OF_THE_MACHINE = ("dtype", "gradient_checkpointing")
OF_THE_WORD = ("token_vectors", "token_share", "lr_token")
# Larger step sizes were never useful: Adam moves every number by about that much, and plain steps follow the gradient.
_LARGEST_STEP_SIZE = {"adam": 1.0, "gradient": 1e6}
_LARGEST_TOKEN_STEP = 10.0
TOKEN_VECTORS = 2
# Steps by the number of images; the default is that for eight.
STEPS_PER_IMAGE, FEWEST_STEPS, MOST_STEPS = 100, 400, 2000
STEPS_BY_IMAGES = f"{STEPS_PER_IMAGE} per image, {FEWEST_STEPS} to {MOST_STEPS}"
# What is stored of a run that learns no word, whatever else was asked for.
WITHOUT_WORD = {"token_vectors": 0, "token_share": 0.0, "lr_token": 1.0}
EVERYTHING, OWN_WORDS = "everything", "own-words"  # what concepts act on, in training and in compositions
# Where concepts act on their own words alone, none changes what another one does.
OF_OWN_WORDS = {"train_on": "bare", "interference_penalty": 0.0}
# What settings and some of their values were called before; still read from records, flags and graphs.
OLD_NAMES = {
    "alpha": "lr_coefficients",
    "beta": "lr_basis",
    "crosstalk": "interference_penalty",
    "draw": "column_sampling",
}
OLD_VALUES = {
    "train_on": {"subsets": "alternate"},
    "lower_step": {"kept": "reuse", "again": "repeat"},
}


@dataclass(frozen=True)
class TrainingConfig(ExtraSettings):
    """What a user asks of a training run.  None leaves a setting to the method, the base model or the device.

    Raises:
        UserError: a value is out of range; the message names the setting.
    """

    method: str = setting("seqlora", "training method: seqlora, or one that it is compared with", METHOD_NAMES)
    hypergradient: str = setting(
        "lookahead", "how seqlora finds the gradient of the down matrix; lookahead is the fastest", HYPERGRADIENT_NAMES
    )
    optimizer: str = setting(
        "adam", "adam, projected after each step, or gradient, the paper's plain gradient steps", ("adam", "gradient")
    )
    lr_coefficients: float = setting(1e-3, "learning rate of LoRA's up matrix (the coefficients), not LoRA's alpha")
    lr_basis: float = setting(1e-3, "learning rate of LoRA's down matrix (the basis)")
    rank: int = setting(4, "LoRA rank, the number of directions that the concept takes per layer", least=1)
    steps: int | None = setting(800, "training steps, or auto", least=1, unset=STEPS_BY_IMAGES)
    token_vectors: int | None = setting(
        None,
        "vectors of the word that is learned for the concept, or 0 for its token and class word as they are",
        least=0,
        most=16,
        unset=f"{TOKEN_VECTORS}; 0 to go on with a run of a version that learned no words",
    )
    token_share: float = setting(
        1 / 3, "share of the training run that learns the word, before the LoRA", least=0, most=0.9
    )
    lr_token: float = setting(
        0.25, "learning rate of the word, in standard deviations of the text encoder's vocabulary"
    )
    batch_size: int = setting(1, "images per forward pass", least=1)
    accumulation: int = setting(1, "forward passes per step, for a larger batch in the same memory", least=1)
    bilevel_iterations: int = setting(1, "iterations of the paper's Algorithm 1 per step, on the same images", least=1)
    inner_steps: int = setting(1, "steps of the up matrix per iteration", least=1)
    lower_step: str | None = setting(
        None,
        "reuse the trial step of the up matrix, or repeat it after the down matrix has moved, as published",
        ("reuse", "repeat"),
        unset="reuse with lookahead, else repeat",
    )
    ridge: float | None = setting(
        None, "weight of the L2 penalty on both matrices", least=0, unset="0 for seqlora, else 0.0001"
    )
    interference_penalty: float | None = setting(
        None,
        "weight of the penalty on changing the images of other prompts",
        least=0,
        unset="0.01 for seqlora, else 0",
    )
    average: float | None = setting(
        None,
        "share of the steps, at the end of the training run, over which the weights are averaged",
        least=0,
        most=1,
        unset="0.5 for seqlora, else 0",
    )
    clip: float = setting(1.0, "largest gradient norm per matrix over all layers, or 0 to turn clipping off", least=0)
    init: str | None = setting(
        None,
        "how the down matrix starts: at random, along the inputs of its layer (spectral), or where they differ from "
        "those of other prompts (contrastive)",
        ("random", "spectral", "contrastive"),
        unset="contrastive for seqlora, else random",
    )
    coordinates: str | None = setting(
        None,
        "how the down matrix moves: plain, or scaled so that every step disturbs other prompts equally (contrastive)",
        ("plain", "contrastive"),
        unset="contrastive for seqlora, else plain",
    )
    layers: str = setting(
        "cross-kv",
        "attention layers to train: text keys and values (cross-kv), all of cross-attention (cross), or all",
        LAYER_PRESETS,
    )
    train_on: str | None = setting(
        None,
        "when earlier concepts are active while training: for every other image (alternate), always (accumulated) or "
        "never (bare)",
        ("alternate", "accumulated", "bare"),
        unset="alternate for seqlora, bare for orthogonal and lora, else accumulated",
    )
    acts_on: str = setting(
        EVERYTHING,
        "what the concept acts on: everything, or its own word's keys and values alone (own-words), to be composed "
        "likewise; then other concepts have no part in its training",
        (EVERYTHING, OWN_WORDS),
    )
    column_sampling: str = setting(
        "without-replacement",
        "how the method orthogonal draws the columns of its down matrix; independent is as published",
        ("without-replacement", "independent"),
    )
    self_regularization: float = setting(
        100.0, "how strongly the method c-lora keeps off the weights that earlier concepts changed", least=0
    )
    prior_weight: float = setting(1.0, "weight of the loss on the images of --prior-images", least=0)
    resolution: int | None = setting(
        None, "side of the square training images, in pixels", least=8, unset="the base model's own"
    )
    crop: str = setting(
        "center", "part of each image to train on: the center, or a random square per step", ("center", "random")
    )
    flip: bool = setting(False, "train on mirrored copies of the images too")
    dtype: str | None = setting(
        None, "precision of the forward and backward passes", DTYPES, unset="the device's fastest safe one"
    )
    gradient_checkpointing: bool = setting(False, "use less memory, at about a third more time")
    seed: int = setting(0, "random seed", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if value is not None or not entry.metadata["unset"]:
                check_setting(entry, value)
        self._check_step_sizes()
        if not (math.isfinite(self.lr_token) and 0 < self.lr_token <= _LARGEST_TOKEN_STEP):
            raise UserError(
                f"lr_token must be a number above 0 and at most {_LARGEST_TOKEN_STEP:g}, not {self.lr_token}."
            )
        if self.resolution is not None and self.resolution % 8:
            raise UserError(f"resolution must be a multiple of 8 pixels, not {self.resolution}.")
        if self.lower_step == "reuse" and self.hypergradient != "lookahead":
            raise UserError(
                f"lower_step reuse works with the lookahead hypergradient only, not with {self.hypergradient}: "
                "choose lower_step repeat or hypergradient lookahead."
            )
        if self.method == "c-lora" and (self.train_on == "bare" or self.acts_on == OWN_WORDS):
            raise UserError(
                "The method c-lora keeps off what earlier concepts changed, so they must be part of its training run: "
                "leave out train_on or set it to accumulated, and set acts_on to everything."
            )
        if self.hypergradient == "exact" and self.method == "seqlora":
            self._check_exact()
        if self.acts_on == OWN_WORDS:
            self._check_own_words()
        self.check_extras(self.acts_on == OWN_WORDS, self.crop)

    def _check_step_sizes(self) -> None:
        most = _LARGEST_STEP_SIZE[self.optimizer]
        for name in ("lr_coefficients", "lr_basis"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a number above 0, not {value}.")
            if value > most:
                raise UserError(
                    f"{name} is a learning rate, not the alpha of a LoRA: {value:g} is too large for the optimizer "
                    f"{self.optimizer}. Use about 0.001; a LoRA's alpha is not set here, since it always equals the "
                    "rank."
                )

    def _check_exact(self) -> None:
        if self.dtype == "float16":
            raise UserError(
                "The exact hypergradient loses small gradients in float16: choose lookahead, or bfloat16 or float32."
            )
        if self.gradient_checkpointing:
            raise UserError(
                "The exact hypergradient differentiates twice, which gradient checkpointing does not allow: "
                "choose lookahead, or switch gradient checkpointing off."
            )

    def _check_own_words(self) -> None:
        for name, value in OF_OWN_WORDS.items():
            given = getattr(self, name)
            if given not in (None, value):
                raise UserError(
                    f"With acts_on own-words other concepts have no part in the training run, so {name} must be "
                    f"{value}, not {given}: leave it out, or set acts_on to everything."
                )

    @property
    def learns_word(self) -> bool:
        """Whether the concept gets a word of its own, whose vectors are learned; also where that is left open."""
        return self.token_vectors != 0

    @property
    def draws_independently(self) -> bool:
        """Whether bases are drawn as Orthogonal Adaptation draws them: without regard to what others hold."""
        return self.method == "orthogonal" and self.column_sampling == "independent"

    def as_dict(self) -> dict:
        """The settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TrainingConfig":
        """The settings from `as_dict`, also under their old names; unknown names are left out."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in current_names(values).items() if name in known})

    def resolve(
        self, method_defaults: Mapping[str, object], native_size: int, dtype: str, images: int = 0
    ) -> "ResolvedConfig":
        """Decide what was left open.

        Args:
            method_defaults: of the method (see `methods.Method.defaults`).
            native_size: side of the base model's images, in pixels.
            dtype: the device's fastest safe precision.
            images: those of the concept; 0 where they are not known, so that the number of steps must be given.
        """
        defaults = {
            "steps": auto_steps(images - self.hold_out) if images else None,
            "lower_step": "reuse" if self.hypergradient == "lookahead" else "repeat",
            "token_vectors": TOKEN_VECTORS,
            "resolution": native_size,
            "dtype": dtype,
            **method_defaults,
            **(OF_OWN_WORDS if self.acts_on == OWN_WORDS else {}),
        }
        values = {name: defaults[name] if value is None else value for name, value in self.as_dict().items()}
        return ResolvedConfig(**(values if values["token_vectors"] else {**values, **WITHOUT_WORD}))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items())


@dataclass(frozen=True)
class ResolvedConfig(TrainingConfig):
    """Everything that decides what a training run computes, with nothing left open.  Stored with every concept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unset = [name for name, value in self.as_dict().items() if value is None]
        if unset:
            raise UserError(f"The setting {unset[0]} has no value: give it one.")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "ResolvedConfig":
        """As `TrainingConfig.from_dict`; records from before there were learned words are of runs without one."""
        return super().from_dict(values if "token_vectors" in values else {**values, **WITHOUT_WORD})

    def makes_the_same(self, other: "ResolvedConfig") -> bool:
        """Whether both make the same concept; precision and memory are the machine's affair."""
        own, others = self.as_dict(), other.as_dict()
        return all(own[name] == others[name] for name in own if name not in OF_THE_MACHINE)


def current_names(values: Mapping[str, object]) -> dict[str, object]:
    """Settings under today's names, with today's words for their values; "auto" is None."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    return {
        name: None if value == "auto" and name not in _FREE_TEXTS else OLD_VALUES.get(name, {}).get(value, value)
        for name, value in renamed.items()
    }


def auto_steps(images: int) -> int:
    """The number of training steps for so many images."""
    return min(max(STEPS_PER_IMAGE * images, FEWEST_STEPS), MOST_STEPS)


_FREE_TEXTS = {entry.name for entry in dataclasses.fields(TrainingConfig) if is_text(entry)}
