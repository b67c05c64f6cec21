"""What is compared: how concepts are trained (a recipe), and how they are put together (a system).

Every recipe spends the same number of forward-backward passes per concept, whatever one of its steps costs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from seqlora_core.composition.fusion import FusionSettings
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import METHODS, resolve

PASSES = 300  # forward and backward, per concept
BATCH, RANK, RESOLUTION = 4, 2, 32
LAYERS = TrainingConfig.layers
_TUNED_APART = ("optimizer", "column_sampling")  # settings with learning rates of their own


@dataclass(frozen=True)
class Recipe:
    """How the concepts of one bank are trained.

    Attributes:
        settings: where they differ from the defaults of `TrainingConfig`.
        tuned_for: "final" or "single", the score that its learning rates are chosen by: of the concepts in the sum of
            all, or of each alone, which is what a fusion starts from.
        alias: a name for learning rates that are chosen with all of its settings.
        decided: whether learning rates that the walk cannot tell apart are tried on more concepts and seeds.
    """

    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    tuned_for: str = "final"
    alias: str = ""
    decided: bool = True

    @property
    def tuning(self) -> str:
        """The name of its learning rates; recipes that differ in nothing of `_TUNED_APART` share their method's."""
        if self.alias:
            return f"{self.method}-{self.alias}"
        apart = [str(self.settings[name]) for name in _TUNED_APART if name in self.settings]
        return "-".join([self.method, *apart, *(["single"] if self.tuned_for == "single" else [])])

    @property
    def tuned(self) -> "Recipe":
        """The recipe that these learning rates are chosen with."""
        if self.alias:
            return self
        return replace(self, settings={key: value for key, value in self.settings.items() if key in _TUNED_APART})

    def config(
        self, passes: int, seed: int, lr_coefficients: float, lr_basis: float, layers: str = LAYERS
    ) -> ResolvedConfig:
        """Resolve the settings of a run of `passes` forward-backward passes per concept, or the few less that fit."""
        values = {
            "rank": RANK,
            "token_vectors": 0,
            "batch_size": BATCH,
            "layers": layers,
            "method": self.method,
            "seed": seed,
        }
        values |= {"lr_coefficients": lr_coefficients, "lr_basis": lr_basis, **self.settings}
        config = resolved(**values)
        return replace(config, steps=max(1, passes // passes_per_step(config)))


def resolved(**settings) -> ResolvedConfig:
    """Decide what is left open, by the method and for the mini base on the CPU."""
    return resolve(TrainingConfig(**settings), RESOLUTION, "float32")


def passes_per_step(config: ResolvedConfig) -> int:
    """Count the forward-backward passes over a minibatch in one step of a training run."""
    inner = config.inner_steps
    if config.method == "seqlora":
        # The lower steps and the gradient at their end, then the lower steps at the new B.  A central difference takes
        # two passes more, and a product with a Hessian is usually counted as two.
        again = 0 if config.lower_step == "reuse" else inner
        iteration = inner + 1 + again + (0 if config.hypergradient == "lookahead" else 2)
    elif config.method == "alternating":
        iteration = inner + 1
    else:
        iteration = 1
    return config.bilevel_iterations * iteration


@dataclass(frozen=True)
class System:
    """A row of the tables.

    Attributes:
        strength: the common factor of all concepts.
        short: the title of a column of thumbnails, where `name` is too long for that.
    """

    name: str
    recipe: Recipe
    fusion: str = "sum"
    strength: float = 1.0
    short: str = ""
    settings: FusionSettings = field(default_factory=FusionSettings)

    @property
    def sequential(self) -> bool:
        """Whether it has a history: the model after each concept is the plain sum up to it.

        The others are put together anew for every set of concepts; before that, each concept is as it is alone.
        """
        return self.fusion == "sum" and self.strength == 1.0

    @property
    def composition(self) -> str:
        """A name of how concepts are put together, with a hash of everything that decides it."""
        settings = json.dumps(asdict(self.settings), sort_keys=True).encode()
        return f"{self.fusion}-{self.strength:g}-{hashlib.sha256(settings).hexdigest()[:8]}"


SEQLORA = Recipe("seqlora")
ALTERNATING = Recipe("alternating")
INFLORA = Recipe("inflora")
_ON_ALL = Recipe("seqlora", {"train_on": "accumulated"})
_SINGLE_LORA = Recipe("lora", tuned_for="single")
_INDEPENDENT = Recipe("orthogonal", {"column_sampling": "independent"})

SYSTEMS = (
    System("SeqLoRA", SEQLORA),
    System("SeqLoRA, always on all earlier concepts", _ON_ALL, short="on all"),
    System("Continual Alternating", ALTERNATING, short="alternate"),
    System("Orthogonal Adaptation, without replacement", Recipe("orthogonal"), short="OA, exact"),
    System("Orthogonal Adaptation, independent draws", _INDEPENDENT, short="OA, drawn"),
    System("Orthogonal Adaptation, independent draws, factor 0.6", _INDEPENDENT, strength=0.6, short="OA, x 0.6"),
    System("InfLoRA", INFLORA),
    System("LoRA, summed", _SINGLE_LORA, short="LoRA, sum"),
    System("LoRA, averaged", _SINGLE_LORA, "weighted-average", short="average"),
    System("Mix-of-Show (gradient fusion)", _SINGLE_LORA, "gradient-fusion", short="MixOfShow"),
    System("LoRACLR", _SINGLE_LORA, "loraclr"),
    System("Custom Diffusion", _SINGLE_LORA, "custom-diffusion", short="Cust.Diff"),
)
OURS, RIVAL = "SeqLoRA", "Continual Alternating"
OWN = [system.name for system in SYSTEMS if system.recipe.method == "seqlora"]
COMPARED = [system.name for system in SYSTEMS if system.name not in OWN]
PLAIN_BASE, SINGLE_LORA = "the base itself, class word alone", "one LoRA a concept, each alone"


def _rivals_with(**settings) -> list[System]:
    return [
        replace(system, recipe=replace(system.recipe, settings={**system.recipe.settings, **settings}))
        for system in SYSTEMS
        if system.recipe in (ALTERNATING, INFLORA, _SINGLE_LORA)
    ]


_DEFAULTS = METHODS["seqlora"].defaults
# Settings of SeqLoRA that any method could use: the rivals with them.
CHANGED_RIVALS = {
    "without a ridge term": _rivals_with(ridge=_DEFAULTS["ridge"]),
    "mean over the last steps": _rivals_with(average=_DEFAULTS["average"]),
}


@dataclass(frozen=True)
class Variant:
    """A row of the ablation: one setting of SeqLoRA's default (or of a rival) changed."""

    factor: str
    value: str
    recipe: Recipe


def _changed(factor: str, value: str, **settings) -> Variant:
    return Variant(factor, value, replace(SEQLORA, settings=settings))


# The paper's Algorithm 1, without anything that this project added to it, and with learning rates of its own.
_PUBLISHED = {**METHODS["alternating"].defaults, "lower_step": "repeat"}
# What this project added to it, for other methods; their own start of the basis stays.
_OURS = {name: value for name, value in _DEFAULTS.items() if name != "init"}
VARIANTS = (
    Variant("trained on", "subsets", SEQLORA),
    Variant("trained on", "all earlier concepts", _ON_ALL),
    _changed("coordinates", "plain", coordinates="plain"),
    _changed("trained on", "bare base", train_on="bare"),
    _changed("crosstalk", "0", interference_penalty=0.0),
    Variant("hypergradient", "none (alternating)", Recipe("alternating", {"init": "contrastive", **_OURS})),
    Variant("basis", "frozen at a spectral start", Recipe("inflora", _OURS)),
    _changed("start of B", "random", init="random"),
    _changed("start of B", "spectral", init="spectral"),
    _changed("lower step", "again (eq. 18)", lower_step="repeat"),
    _changed("crosstalk", "a quarter", interference_penalty=_DEFAULTS["interference_penalty"] / 4),
    _changed("crosstalk", "four times", interference_penalty=_DEFAULTS["interference_penalty"] * 4),
    _changed("average", "0", average=0.0),
    _changed("layers", "cross", layers="cross"),
    _changed("hypergradient", "exact, eq. 18", hypergradient="exact"),
    _changed("hypergradient", "finite-difference, eq. 18", hypergradient="finite-difference"),
    _changed("layers", "all", layers="all"),
    _changed("inner steps", "5", inner_steps=5),
    _changed("bilevel iterations", "4", bilevel_iterations=4),
    _changed("ridge", "1e-4", ridge=1e-4),
    Variant("optimizer", "gradient", Recipe("seqlora", {"optimizer": "gradient"}, decided=False)),
    Variant("all that is ours", "as published", Recipe("seqlora", _PUBLISHED, alias="published")),
)
# What retains more than the default in the ablation and costs nothing there: its one seed does not decide.
CONTESTED = tuple(variant for variant in VARIANTS if variant.factor == "average")
# How far a step of Adam moves a layer's output grows with the square root of the layer's width: the mini base's text is
# 128 wide, Stable Diffusion's 768.
AS_ON_SD15 = {
    name: float(f"{getattr(TrainingConfig, name) * (768 / 128) ** 0.5:.1e}") for name in ("lr_coefficients", "lr_basis")
}


def _with(factor: str, value: str, **settings) -> Variant:
    return Variant(factor, value, Recipe("seqlora", settings))


def _as_on_sd15(factor: str, value: str, **settings) -> Variant:
    return _with(factor, value, **AS_ON_SD15, **settings)


# What `train` does by default, with its learning rates and with others; and its other numbers changed, at the learning
# rates that correspond to its own on Stable Diffusion.
DEFAULTS = (
    _with("default", "-"),
    _with("alpha and beta", "0.00032", lr_coefficients=3.2e-4, lr_basis=3.2e-4),
    _as_on_sd15("alpha and beta", "as on SD1.5"),
    _with("alpha and beta", "0.0032", lr_coefficients=3.2e-3, lr_basis=3.2e-3),
    _with("alpha and beta", "0.01", lr_coefficients=1e-2, lr_basis=1e-2),
    _as_on_sd15("rank", "2", rank=2),
    _as_on_sd15("rank", "8", rank=8),
    _as_on_sd15("steps", "400", steps=400),
    _as_on_sd15("steps", "1600", steps=1600),
    _as_on_sd15("batch size", "2", batch_size=2),
    _as_on_sd15("clip", "0", clip=0.0),
    _as_on_sd15("average", "0", average=0.0),
)
