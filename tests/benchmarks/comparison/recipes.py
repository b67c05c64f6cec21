"""What is compared: how concepts are trained (a recipe), and how they are put together (a system)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from seqlora_core.composition.fusion import FusionSettings
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import METHODS, resolve

PASSES, WORD_PASSES = 300, 100  # per concept, of batches of 4: in all, and of these for the word
RESOLUTION = 32
SETTINGS = {"rank": 2, "batch_size": 4, "token_vectors": 2, "token_share": 0.0}


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the concepts of a bank are trained.

    Attributes:
        settings: where they differ from the method's defaults.
        tuned_alone: whether learning rates are chosen by each concept alone, which is what merges start from, instead
            of by the sum of all.
        constrained: whether eq. 4 holds, where the method has it.
        length: passes for the factors, relative to those of the others.
    """

    name: str
    settings: Mapping[str, object]
    tuned_alone: bool = False
    constrained: bool = True
    length: float = 1.0

    @property
    def optimizer(self) -> str:
        return str(self.settings.get("optimizer", "adam"))

    def config(self, seed: int, step_size: float) -> ResolvedConfig:
        """Resolve the settings, with as many steps as the passes that the word leaves allow."""
        values = {**SETTINGS, "seed": seed, "lr_coefficients": step_size, "lr_basis": step_size, **self.settings}
        config = resolve(TrainingConfig(**values), RESOLUTION, "float32")
        passes = PASSES if config.token_share else PASSES - WORD_PASSES
        return replace(config, steps=round(self.length * passes) // METHODS[config.method].passes(config))


OURS = Recipe("seqlora", {})
_PUBLISHED = {**METHODS["alternating"].defaults, "lower_step": "repeat"}  # Algorithm 1 without our additions
PUBLISHED = Recipe("published", _PUBLISHED)
PUBLISHED_GRADIENT = Recipe("published-gradient", {**_PUBLISHED, "optimizer": "gradient"})
ALTERNATING = Recipe("alternating", {"method": "alternating"})
INFLORA = Recipe("inflora", {"method": "inflora"})
ORTHOGONAL = Recipe("orthogonal", {"method": "orthogonal"})
ORTHOGONAL_32 = Recipe(
    "orthogonal-32", {"method": "orthogonal", "rank": 32, "column_sampling": "independent"}, tuned_alone=True
)
LORA = Recipe("lora", {"method": "lora"}, tuned_alone=True)
C_LORA = Recipe("c-lora", {"method": "c-lora"})
MASKED = Recipe("seqlora-own-words", {"acts_on": "own-words"})
MASKED_LORA = Recipe("lora-own-words", {"method": "lora", "acts_on": "own-words"}, tuned_alone=True)

_DEFAULTS = METHODS["seqlora"].defaults
_ALTERNATE = {"train_on": _DEFAULTS["train_on"]}
_PENALTY = {"interference_penalty": _DEFAULTS["interference_penalty"]}
_OURS_BUT_START = {name: value for name, value in _DEFAULTS.items() if name != "init"}


@dataclass(frozen=True)
class System:
    """A row of the main table.

    Attributes:
        merge: "sum", the name of a fusion, "own words" (each acts on its word's rows alone), "switching" (only the
            concept in the prompt) or "words alone" (no LoRA).
        strength: the common factor of all concepts; None is chosen on the tuning concepts.
        needs: what putting concepts together takes, besides their files.
    """

    name: str
    recipe: Recipe
    merge: str = "sum"
    strength: float | None = 1.0
    needs: str = "nothing"
    settings: FusionSettings = field(default_factory=FusionSettings)

    @property
    def in_order(self) -> bool:
        """Whether the model after each concept is the plain sum up to it, so that concepts can be forgotten."""
        return self.merge == "sum" and self.strength == 1.0


SYSTEMS = (
    System("SeqLoRA (ours)", OURS, needs="order of training"),
    System("SeqLoRA (ours), own words", OURS, "own words", needs="own text encoding"),
    System("SeqLoRA as published, projected Adam", PUBLISHED, needs="order of training"),
    System("SeqLoRA as published, plain gradients", PUBLISHED_GRADIENT, needs="order of training"),
    System("Continual Alternating", ALTERNATING, needs="order of training"),
    System("InfLoRA-style", INFLORA, needs="order of training"),
    System("Orthogonal Adaptation, rank 2, without replacement", ORTHOGONAL),
    System("Orthogonal Adaptation, rank 32, independent draws", ORTHOGONAL_32),
    System("C-LoRA", C_LORA, needs="order of training"),
    System("LoRA, summed", LORA),
    System("LoRA, summed, strength tuned", LORA, strength=None),
    System("TIES", LORA, "ties"),
    System("Mix-of-Show (gradient fusion)", LORA, "gradient-fusion", needs="base, prompts"),
    System("SSR-Merge", LORA, "ssr-merge", needs="base, prompts"),
    System("LoRACLR", LORA, "loraclr", needs="base, prompts", settings=FusionSettings(step_size=1e-2)),
    System("Custom Diffusion", LORA, "custom-diffusion", needs="base, prompts"),
    System("LoRA, own words", LORA, "own words", needs="own text encoding"),
    System("SeqLoRA (ours) trained on own words, own words", MASKED, "own words", needs="own text encoding"),
    System("LoRA trained on own words, own words", MASKED_LORA, "own words", needs="own text encoding"),
    System("words alone (textual inversion)", OURS, "words alone"),
    System("LoRA, switching", LORA, "switching", needs="one concept per image"),
)
# A row of the ablation: a name, and the recipe behind it.
ABLATION = (
    ("SeqLoRA (ours)", OURS),
    ("without eq. 4", Recipe("no-eq4", {}, constrained=False)),
    ("without the interference penalty", Recipe("no-penalty", {"interference_penalty": 0.0})),
    ("without both", Recipe("no-eq4-no-penalty", {"interference_penalty": 0.0}, constrained=False)),
    ("without alternate images: all earlier concepts always", Recipe("accumulated", {"train_on": "accumulated"})),
    ("frozen basis", Recipe("frozen-basis", {"method": "inflora", **_OURS_BUT_START})),
    ("alternating iteration", Recipe("no-coupling", {"method": "alternating", **_DEFAULTS})),
    ("LoRA with penalty and alternate images", Recipe("lora-penalty", {"method": "lora", **_PENALTY, **_ALTERNATE})),
    ("InfLoRA-style with alternate images", Recipe("inflora-alternate", {"method": "inflora", **_ALTERNATE})),
    ("Alternating with alternate images", Recipe("alternating-alternate", {"method": "alternating", **_ALTERNATE})),
)


def _words(vectors: int = 2, share: float = WORD_PASSES / PASSES, step_size: float = 0.25) -> Recipe:
    """Words that are learned with other settings, so not those that all recipes share."""
    settings = {"token_vectors": vectors, "token_share": share, "lr_token": step_size}
    return Recipe(f"words-{vectors}-{share:.2g}-{step_size:g}", settings)


# A row per default of `train`, changed: a name, and the recipe, at the step size of OURS.
DEFAULTS = (
    ("nothing", OURS),
    ("`--rank 4`", Recipe("rank-4", {"rank": 4})),
    ("`--rank 8`", Recipe("rank-8", {"rank": 8})),
    ("half the steps of the factors", Recipe("short", {}, length=0.5)),
    ("twice the steps of the factors", Recipe("long", {}, length=2.0)),
    ("`--interference-penalty 0.0025`", Recipe("penalty-quarter", {"interference_penalty": 0.0025})),
    ("`--interference-penalty 0.04`", Recipe("penalty-four", {"interference_penalty": 0.04})),
    ("`--average 0`", Recipe("average-0", {"average": 0.0})),
    ("`--init random`", Recipe("init-random", {"init": "random"})),
    ("`--init spectral`", Recipe("init-spectral", {"init": "spectral"})),
    ("`--coordinates plain`", Recipe("coordinates-plain", {"coordinates": "plain"})),
    ("`--train-on bare`", Recipe("bare", {"train_on": "bare"})),
    ("`--lower-step repeat`", Recipe("lower-step-repeat", {"lower_step": "repeat"})),
    ("`--hypergradient exact`", Recipe("hypergradient-exact", {"hypergradient": "exact"})),
    ("`--hypergradient finite-difference`", Recipe("finite-difference", {"hypergradient": "finite-difference"})),
    ("`--inner-steps 5`", Recipe("inner-steps-5", {"inner_steps": 5})),
    ("`--ridge 1e-4`", Recipe("ridge", {"ridge": 1e-4})),
    ("`--clip 0`", Recipe("clip-0", {"clip": 0.0})),
    ("`--layers cross`", Recipe("layers-cross", {"layers": "cross"})),
    ("`--layers all`", Recipe("layers-all", {"layers": "all"})),
    ("`--token-vectors 1`", _words(vectors=1)),
    ("`--token-vectors 4`", _words(vectors=4)),
    ("`--token-share 0.2`", _words(share=0.2)),
    ("`--token-share 0.5`", _words(share=0.5)),
    ("`--lr-token 0.1`", _words(step_size=0.1)),
    ("`--lr-token 0.5`", _words(step_size=0.5)),
)
