"""The options of a training run's settings, made from the settings' own metadata."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping

from ..training.config import OLD_NAMES, OLD_VALUES, TrainingConfig
from ..training.extra_settings import ExtraSettings
from ..training.setting import is_text
from .options import Options, number

# In the order of the help.  A setting that is in none of the lists belongs to the method.
BASICS = ("rank", "steps", "token_vectors", "resolution", "crop", "flip", "lr_coefficients", "lr_basis", "layers")
BASICS += ("prior_weight", "seed")
RESOURCES = ("batch_size", "accumulation", "dtype", "gradient_checkpointing")
EXTRAS = tuple(entry.name for entry in dataclasses.fields(ExtraSettings))


def add_settings(basics: Options, resources: Options, method: Options, extras: Options) -> None:
    """Add one option per setting to its group; the former names of settings are options without help."""
    fields = {entry.name: entry for entry in dataclasses.fields(TrainingConfig)}
    of_method = tuple(name for name in fields if name not in BASICS + RESOURCES + EXTRAS)
    former = {new: old for old, new in OLD_NAMES.items()}
    for group, names in ((basics, BASICS), (resources, RESOURCES), (method, of_method), (extras, EXTRAS)):
        for name in names:
            _add_option(group, fields[name], name, _help(fields[name]))
            if name in former:
                _add_option(group, fields[name], former[name], argparse.SUPPRESS)


def requested_config(values: Mapping[str, object]) -> TrainingConfig:
    """Make the settings from the options' values.

    Raises:
        UserError: a value is out of range.
    """
    return TrainingConfig(**{entry.name: values[entry.name] for entry in dataclasses.fields(TrainingConfig)})


def _add_option(group: Options, entry: dataclasses.Field, name: str, text: str) -> None:
    flag, common = f"--{name.replace('_', '-')}", {"dest": entry.name, "default": entry.default, "help": text}
    choices = entry.metadata["choices"]
    if entry.type is bool:
        group.add_argument(flag, action="store_true", **common)
    elif choices:
        group.add_argument(flag, type=_choice(entry), metavar=f"{{{','.join(choices)}}}", **common)
    elif is_text(entry):
        group.add_argument(flag, metavar="TEXT", **common)
    else:
        kind, metavar = (_whole(entry), "N") if "int" in str(entry.type) else (number, "X")
        group.add_argument(flag, type=kind, metavar=metavar, **common)


def _whole(entry: dataclasses.Field) -> Callable[[str], int | None]:
    """Read a whole number; "auto" leaves a setting open that may be left open."""

    def read(text: str) -> int | None:
        return None if text == "auto" and entry.metadata["unset"] else int(text)

    read.__name__ = "int"  # argparse names it in its message
    return read


def _choice(entry: dataclasses.Field) -> Callable[[str], str | None]:
    """Read a choice, also by a former name; "auto" leaves a setting open that may be left open."""

    def read(text: str) -> str | None:
        value = OLD_VALUES.get(entry.name, {}).get(text, text)
        if value == "auto" and entry.metadata["unset"]:
            return None
        if value not in entry.metadata["choices"]:
            known = ", ".join(entry.metadata["choices"])
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {known})")
        return value

    return read


def _help(entry: dataclasses.Field) -> str:
    """The setting's help and default, with the percent signs that argparse would replace doubled."""
    text = entry.metadata["help"].replace("%", "%%")
    if entry.type is bool:
        return text
    if is_text(entry):
        return f"{text} (default: none)"
    default = entry.metadata["unset"] if entry.default is None else entry.default
    auto = f", auto: {entry.metadata['unset']}" if entry.metadata["unset"] and entry.default is not None else ""
    return f"{text} (default: {default}{auto})"
