"""The inputs of SeqLoRA Train Concept, and their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from comfy_api.latest import io
from PIL import Image

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.spec import ConceptSpec
from ..seqlora_core.errors import UserError
from ..seqlora_core.model.sd15 import SD15
from ..seqlora_core.training.config import OLD_NAMES, OLD_VALUES, TOKEN_VECTORS, TrainingConfig
from ..seqlora_core.training.trainer import RunOptions
from .bank import BankType
from .host import folders, interface
from .image_tensors import LARGEST_RESOLUTION

_LARGEST_EXACT_INTEGER = 2**53  # of the front end's JavaScript


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
    preview_every: int = 100
    train_on: str = "auto"
    token_vectors: int = 0  # before there were learned words, all graphs trained without
    token_share: float = TrainingConfig.token_share
    lr_token: float = TrainingConfig.lr_token
    acts_on: str = TrainingConfig.acts_on

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
        return cls(**values)

    @classmethod
    def _required(cls) -> set[str]:
        return {entry.name for entry in fields(cls) if not hasattr(cls, entry.name)}

    def config(self) -> TrainingConfig:
        """The settings of the training run, under today's names; "auto" leaves one open.

        Raises:
            UserError: a setting cannot be used.
        """
        return TrainingConfig.from_dict(vars(self))

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
        return RunOptions(
            resume=True,
            restart_if_changed=True,
            replace=self.on_existing == "replace",
            thumbnail=thumbnail,
            preview_every=self.preview_every,
        )


def train_inputs() -> list[io.Input]:
    """All inputs of the node."""
    return [*_graph_inputs(), *_concept_inputs(), *_optional_inputs(), *_advanced_inputs(), *_word_inputs()]


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
        io.Int.Input("rank", **_described("rank", max=128)),
        io.Int.Input("steps", **_described("steps", max=100000)),
        # The front end rounds to multiples of the step, counted from the minimum.
        io.Int.Input(
            "resolution",
            **_described("resolution", default=SD15.native_size, min=64, max=LARGEST_RESOLUTION, step=64, unset=False),
        ),
        io.Combo.Input("method", **_described("method")),
        io.Int.Input(
            "seed",
            # A seed that changes by itself would ask for another concept at the next run.
            **_described("seed", max=_LARGEST_EXACT_INTEGER, control_after_generate=False),
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


def _advanced_inputs() -> list[io.Input]:
    # TrainingConfig refuses useless learning rates with a sentence; a bound here would only say "bigger than max".
    learning_rate = {"min": 0.0, "max": 1e6, "step": 0.0001, "round": False}
    return [
        _advanced(io.Combo.Input, "layers"),
        _advanced(io.Combo.Input, "optimizer"),
        _advanced(io.Combo.Input, "hypergradient"),
        _advanced(io.Float.Input, "alpha", display_name="lr coefficients", **learning_rate),
        _advanced(io.Float.Input, "beta", display_name="lr basis", **learning_rate),
        _advanced(io.Int.Input, "batch_size", max=64),
        _advanced(io.Boolean.Input, "gradient_checkpointing"),
        interface.advanced(
            io.Int.Input,
            "preview_every",
            default=TrainInputs.preview_every,
            min=0,
            max=100000,
            optional=True,
            tooltip="Training steps between two preview images on the node; 0 turns previews off.",
        ),
        _advanced(io.Combo.Input, "train_on"),
    ]


def _word_inputs() -> list[io.Input]:
    """At the end, although not all are advanced: saved graphs hold the values of inputs by their order."""
    return [
        io.Int.Input("token_vectors", optional=True, **_described("token_vectors", default=TOKEN_VECTORS, unset=False)),
        _advanced(io.Float.Input, "token_share", step=0.01, round=False),
        _advanced(io.Float.Input, "lr_token", display_name="lr token", min=0.0, max=10.0, step=0.01, round=False),
        _advanced(io.Combo.Input, "acts_on"),
    ]


_SETTINGS = {entry.name: entry for entry in fields(TrainingConfig)}


def _described(input_name: str, unset: bool = True, **changes: object) -> dict[str, object]:
    """Default, choices, bounds and tooltip of a setting's input, from the setting's own metadata.

    Args:
        unset: whether the input offers "auto" for a setting that may be left open.
        changes: what is different for the input.
    """
    entry = _SETTINGS[OLD_NAMES.get(input_name, input_name)]
    facts = entry.metadata
    text = f"{facts['help'][0].upper()}{facts['help'][1:]}."
    described = {"default": entry.default, "min": facts["least"], "max": facts["most"]}
    described = {name: value for name, value in described.items() if value is not None}
    if facts["choices"]:
        described["options"] = [*facts["choices"], *OLD_VALUES.get(entry.name, {})]
    if facts["unset"] and unset:
        described |= {"options": ["auto", *described["options"]], "default": "auto"}
        text += f" auto: {facts['unset']}."
    return {**described, "tooltip": text, **changes}


def _advanced(kind: type[io.Input], name: str, **changes: object) -> io.Input:
    return interface.advanced(kind, name, optional=True, **_described(name, **changes))
