"""The inputs of SeqLoRA Train Concept, and their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from comfy_api.latest import io
from PIL import Image

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.spec import ConceptSpec
from ..seqlora_core.errors import UserError
from ..seqlora_core.model.sd15 import SD15
from ..seqlora_core.training.config import STEPS_BY_IMAGES, TOKEN_VECTORS, TrainingConfig
from ..seqlora_core.training.run_options import RunOptions
from .bank import BankType
from .host import folders
from .image_tensors import LARGEST_RESOLUTION
from .setting_inputs import (
    AUTO_STEPS,
    LARGEST_EXACT_INTEGER,
    OWN_SEED,
    PREVIEW_EVERY,
    SettingsType,
    described,
    expert_inputs,
    expert_word_inputs,
    training_config,
)

_TEXTS = ("caption_prefix", "preview_prompt")
_STEPS = f"Training steps. {AUTO_STEPS}: by the number of images ({STEPS_BY_IMAGES})."


@dataclass(frozen=True)
class TrainInputs:
    """What is set on the node, under the names of its inputs: saved graphs and API files hold these names.

    Where an input has no value, as in graphs of an earlier version, the setting's default holds.
    """

    bank_name: str
    concept_name: str
    token: str
    class_word: str
    rank: int
    steps: int
    resolution: int
    method: str
    seed: int
    on_existing: str
    bank: Bank | None = None
    captions: str = ""
    layers: str = TrainingConfig.layers
    optimizer: str = TrainingConfig.optimizer
    hypergradient: str = TrainingConfig.hypergradient
    alpha: float = TrainingConfig.lr_coefficients
    beta: float = TrainingConfig.lr_basis
    batch_size: int = TrainingConfig.batch_size
    gradient_checkpointing: bool = TrainingConfig.gradient_checkpointing
    preview_every: int = PREVIEW_EVERY
    train_on: str = "auto"
    token_vectors: int = 0  # before there were learned words, all graphs trained without
    token_share: float = TrainingConfig.token_share
    lr_token: float = TrainingConfig.lr_token
    acts_on: str = TrainingConfig.acts_on
    settings: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_lists(cls, lists: Mapping[str, Sequence[object]]) -> "TrainInputs":
        """The first value of every input's list; of captions all, one line each, as captioning nodes return a list.

        Raises:
            UserError: another node has put an empty list on an input that needs a value.
        """
        values = {name: own[0] for name, own in lists.items() if own}
        if len(captions := lists.get("captions") or []) > 1:
            values["captions"] = "\n".join(" ".join(caption.split()) for caption in captions)
        for name in lists:
            if name not in values and name in cls._required():
                raise UserError(f"The input {name} received an empty list: connect a node that returns a value.")
        return cls(**{**values, "settings": values.get("settings") or {}})

    @classmethod
    def _required(cls) -> set[str]:
        return {entry.name for entry in fields(cls) if not hasattr(cls, entry.name)}

    def config(self) -> TrainingConfig:
        """The settings of the training run, under today's names; "auto" leaves one open.

        Raises:
            UserError: a setting cannot be used.
        """
        return training_config({**vars(self), **self.settings})

    def from_settings(self) -> str:
        """What the connected settings changed, as a sentence; empty if nothing."""
        own, defaults = vars(self), {**vars(TrainingConfig()), "preview_prompt": "", "preview_seed": OWN_SEED}
        changed = []
        for name, value in self.settings.items():
            if name in own and own[name] != value:
                changed.append(f"{name} {value} (instead of {own[name]})")
            elif name not in own and value != defaults[name]:
                changed.append(f"{name} {value!r}" if name in _TEXTS else f"{name} {value}")
        return f"From SeqLoRA Training Settings: {', '.join(changed)}." if changed else ""

    def spec(self) -> ConceptSpec:
        """The concept's name, token and class word.

        Raises:
            UserError: one of them cannot be used.
        """
        return ConceptSpec(self.concept_name, self.token, self.class_word)

    def bank_folder(self) -> Path:
        """The folder of the connected bank, or of the named one."""
        return self.bank.folder if self.bank is not None else folders.bank_folder(self.bank_name)

    def options(self, thumbnail: Image.Image) -> RunOptions:
        """How the training run behaves."""
        seed = int(self.settings.get("preview_seed", OWN_SEED))
        return RunOptions(
            resume=True,
            restart_if_changed=True,
            replace=self.on_existing == "replace",
            thumbnail=thumbnail,
            preview_every=int(self.settings.get("preview_every", self.preview_every)),
            preview_prompt=str(self.settings.get("preview_prompt", "")).strip(),
            preview_seed=None if seed == OWN_SEED else seed,
        )


def train_inputs() -> list[io.Input]:
    """All inputs of the node."""
    return [
        *_graph_inputs(),
        *_concept_inputs(),
        *_optional_inputs(),
        *expert_inputs(),
        # Here, although it is not advanced: saved graphs hold the values of inputs by their order.
        io.Int.Input("token_vectors", optional=True, **described("token_vectors", default=TOKEN_VECTORS, unset=False)),
        *expert_word_inputs(),
        SettingsType.Input(
            "settings",
            optional=True,
            tooltip="From SeqLoRA Training Settings, whose values are used instead of the advanced inputs here.",
        ),
    ]


def _graph_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="Stable Diffusion 1.5. It is not changed; LoRAs on it are part of it while training."
        ),
        io.Clip.Input("clip", tooltip="The CLIP that encodes the captions."),
        io.Vae.Input("vae", tooltip="The VAE that encodes the images."),
        # Optional for the host only, which would leave out the node and run the rest of the graph without an error.
        io.Image.Input("images", optional=True, tooltip="4 to 20 images of the subject; they may differ in size."),
    ]


def _concept_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "bank_name", default="my bank", tooltip="A bank in models/seqlora; created if it does not exist."
        ),
        io.String.Input("concept_name", default="", tooltip="The concept's name in the bank."),
        io.String.Input(
            "token", default="", tooltip="A rare word that stands for the subject in prompts, such as sksdog."
        ),
        io.String.Input("class_word", default="", tooltip="What the subject is, such as dog."),
        io.Int.Input("rank", **described("rank", max=128)),
        io.Int.Input(
            "steps",
            **described("steps", min=AUTO_STEPS, max=100000, unset=False, tooltip=_STEPS),
        ),
        # The front end rounds to multiples of the step, counted from the minimum.
        io.Int.Input(
            "resolution",
            **described("resolution", default=SD15.native_size, min=64, max=LARGEST_RESOLUTION, step=64, unset=False),
        ),
        io.Combo.Input("method", **described("method")),
        io.Int.Input(
            "seed",
            # A seed that changes by itself would ask for another concept at the next run.
            **described("seed", max=LARGEST_EXACT_INTEGER, control_after_generate=False),
        ),
        io.Combo.Input(
            "on_existing",
            options=["error", "replace", "new version"],
            default="error",
            tooltip="What to do if the bank has this name with other settings or images. If nothing has changed, "
            "nothing is trained.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        BankType.Input("bank", optional=True, tooltip="The bank to train into, used instead of bank_name."),
        io.String.Input(
            "captions",
            optional=True,
            multiline=True,
            default="",
            tooltip="One line per image, containing the token, or one line for all images; if empty, neutral templates "
            "are used.",
        ),
        io.Mask.Input("masks", optional=True, tooltip="One mask per image: the loss counts only inside it."),
    ]
