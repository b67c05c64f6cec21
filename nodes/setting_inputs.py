"""Inputs for the settings of a training run, made from the settings' own metadata."""

from collections.abc import Mapping
from dataclasses import fields

from comfy_api.latest import io

from ..seqlora_core.training.config import OLD_NAMES, OLD_VALUES, TrainingConfig
from .host import interface

SettingsType = io.Custom("SEQLORA_SETTINGS")
AUTO_STEPS = 0  # the value of the input steps that leaves their number open
PREVIEW_EVERY = 100
OWN_SEED = -1  # of previews: that of the training run
LARGEST_EXACT_INTEGER = 2**53  # of the front end's JavaScript
_SETTINGS = {entry.name: entry for entry in fields(TrainingConfig)}


def training_config(values: Mapping[str, object]) -> TrainingConfig:
    """The settings from the values of inputs, among which others may be.

    Raises:
        UserError: a setting cannot be used.
    """
    own = {name: value for name, value in values.items() if OLD_NAMES.get(name, name) in _SETTINGS}
    return TrainingConfig.from_dict({**own, "steps": None if values["steps"] == AUTO_STEPS else values["steps"]})


def expert_inputs(advanced: bool = True) -> list[io.Input]:
    """Settings that few users need to change, in the order in which saved graphs hold their values.

    Args:
        advanced: whether hosts that have an advanced section show them there.
    """
    # TrainingConfig refuses useless learning rates with a sentence; a bound here would only say "bigger than max".
    learning_rate = {"min": 0.0, "max": 1e6, "step": 0.0001, "round": False}
    return [
        setting_input(io.Combo.Input, "layers", advanced),
        setting_input(io.Combo.Input, "optimizer", advanced),
        setting_input(io.Combo.Input, "hypergradient", advanced),
        setting_input(io.Float.Input, "alpha", advanced, display_name="lr coefficients", **learning_rate),
        setting_input(io.Float.Input, "beta", advanced, display_name="lr basis", **learning_rate),
        setting_input(io.Int.Input, "batch_size", advanced, max=64),
        setting_input(io.Boolean.Input, "gradient_checkpointing", advanced),
        (interface.advanced if advanced else _plain)(
            io.Int.Input,
            "preview_every",
            default=PREVIEW_EVERY,
            min=0,
            max=100000,
            optional=True,
            tooltip="Training steps between two preview images on the node; 0 turns previews off.",
        ),
        setting_input(io.Combo.Input, "train_on", advanced),
    ]


def expert_word_inputs(advanced: bool = True) -> list[io.Input]:
    """Such settings of the learned word, and what the concept acts on."""
    rate = {"display_name": "lr token", "min": 0.0, "max": 10.0, "step": 0.01, "round": False}
    return [
        setting_input(io.Float.Input, "token_share", advanced, step=0.01, round=False),
        setting_input(io.Float.Input, "lr_token", advanced, **rate),
        setting_input(io.Combo.Input, "acts_on", advanced),
    ]


def setting_input(kind: type[io.Input], name: str, advanced: bool, **changes: object) -> io.Input:
    """The optional input of a setting."""
    return (interface.advanced if advanced else _plain)(kind, name, optional=True, **described(name, **changes))


def described(input_name: str, unset: bool = True, **changes: object) -> dict[str, object]:
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


def _plain(kind: type[io.Input], name: str, **fields: object) -> io.Input:
    return kind(name, **fields)
