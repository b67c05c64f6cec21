"""The options of a training run, made from the settings' own metadata."""

import argparse
import dataclasses
from collections.abc import Callable

from ..training.config import OLD_NAMES, OLD_VALUES, TrainingConfig


def add_settings(command: argparse.ArgumentParser) -> None:
    """One option per setting; the names that settings had before are options, too, without help."""
    old_names = {new: old for old, new in OLD_NAMES.items()}
    for entry in dataclasses.fields(TrainingConfig):
        _add_option(command, entry, [entry.name], _help(entry))
        if entry.name in old_names:
            _add_option(command, entry, [old_names[entry.name]], argparse.SUPPRESS)


def requested_config(args: argparse.Namespace) -> TrainingConfig:
    """What the options ask for.

    Raises:
        UserError: a value is out of range.
    """
    return TrainingConfig(**{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(TrainingConfig)})


def _add_option(command: argparse.ArgumentParser, entry: dataclasses.Field, names: list[str], text: str) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in names]
    common = {"dest": entry.name, "default": entry.default, "help": text}
    choices = entry.metadata["choices"]
    if entry.type is bool:
        command.add_argument(*flags, action="store_true", **common)
    elif choices:
        command.add_argument(*flags, type=_choice(entry), metavar=f"{{{','.join(choices)}}}", **common)
    else:
        kind, metavar = (int, "N") if "int" in str(entry.type) else (float, "X")
        command.add_argument(*flags, type=kind, metavar=metavar, **common)


def _choice(entry: dataclasses.Field) -> Callable[[str], str | None]:
    """Reads a choice, also under the name that it had before; "auto" leaves the setting open where that is allowed."""

    def read(text: str) -> str | None:
        value = OLD_VALUES.get(entry.name, {}).get(text, text)
        if value == "auto" and entry.metadata["unset"]:
            return None
        if value not in entry.metadata["choices"]:
            raise argparse.ArgumentTypeError(f"choose one of {', '.join(entry.metadata['choices'])}, not {text!r}")
        return value

    return read


def _help(entry: dataclasses.Field) -> str:
    if entry.type is bool:
        return entry.metadata["help"]
    default = entry.metadata["unset"] if entry.default is None else entry.default
    return f"{entry.metadata['help']} (default: {default})"
