"""Options that several commands share, and the checks of their values."""

import argparse
import os
from dataclasses import dataclass

import torch

from ..bank import Bank, ConceptSpec
from ..bank.names import default_token
from ..composition.fusion import FusionSettings
from ..model.base import Base, load_base
from ..model.sampling import SamplingSettings
from ..training.config import LARGEST_SEED
from .terminal import quiet_libraries

Options = argparse.ArgumentParser | argparse._ArgumentGroup
_LARGEST_NUMBER = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class BaseOptions:
    """The values of --base, --device and --tokenizer."""

    base: str
    device: str
    tokenizer: str | None

    def load(self, dtype: str = "float32", bank: Bank | None = None) -> Base:
        """Load the base model.

        Raises:
            UserError: it cannot be loaded (see `load_base`), or the bank belongs to another base model or text encoder.
        """
        quiet_libraries()
        base = load_base(self.base, self.device, dtype, self.tokenizer)
        if bank is not None:
            bank.check_base(base.identity)
            bank.check_layers(base.layers)
            if bank.manifest.text_encoder:
                bank.check_text_encoder(base.text_encoder.fingerprint())
        return base


def add_base(options: Options, required: bool = True, purpose: str = "") -> None:
    """Add --base and --tokenizer.

    Args:
        purpose: why a command takes a base model that it does not require.
    """
    known = "mini, an SD1.5 checkpoint (.safetensors) or a diffusers folder"
    options.add_argument(
        "--base", required=required, type=location, help=f"base model{f' {purpose}' if purpose else ''}: {known}"
    )
    options.add_argument(
        "--tokenizer",
        type=location,
        metavar="DIR",
        help="folder with CLIP's tokenizer, needed by checkpoints on offline machines",
    )


def add_device(options: Options) -> None:
    """Add --device."""
    options.add_argument(
        "--device", default="auto", help="device to run on: auto, cpu, cuda, cuda:1, mps (default: auto)"
    )


def add_bank(options: Options, required: bool = True, text: str = "folder of the bank", action: str = "store") -> None:
    """Add --bank."""
    options.add_argument("--bank", required=required, type=location, metavar="DIR", action=action, help=text)


def add_concepts(options: Options, required: bool) -> None:
    """Add --concept, which selects one concept and may be repeated."""
    options.add_argument(
        "--concept",
        action="append",
        default=[],
        required=required,
        metavar="NAME[:STRENGTH]",
        help="concept of the bank to use, at strength 1 by default; repeat the option for more concepts",
    )


def add_words(options: Options, token: str, required: bool = True) -> None:
    """Add --name, --class-word and --token, which describe a new concept.

    Args:
        token: the help of --token.
        required: whether the command always needs the first two.
    """
    options.add_argument("--name", required=required, help="name of the concept in the bank")
    options.add_argument("--class-word", required=required, metavar="WORD", help="what the concept is, such as dog")
    options.add_argument("--token", metavar="WORD", help=f"{token} (default: made from the name)")


def concept_spec(name: str, token: str | None, class_word: str) -> ConceptSpec:
    """Make the concept's spec from the values of `add_words`.

    Raises:
        UserError: one of them cannot be used.
    """
    return ConceptSpec(name, token if token is not None else default_token(name), class_word)


def add_probing(options: Options) -> None:
    """Add --seed and --sampling-steps of the images that are sampled to measure what the layers receive."""
    defaults = FusionSettings()
    options.add_argument(
        "--seed",
        type=seed,
        default=defaults.seed,
        metavar="N",
        help=f"random seed of the images sampled on the base (default: {defaults.seed})",
    )
    options.add_argument(
        "--sampling-steps",
        type=count,
        default=defaults.sampling_steps,
        metavar="N",
        help=f"sampler steps per image sampled on the base (default: {defaults.sampling_steps})",
    )


def add_sampling(options: Options) -> None:
    """Add --seed, --steps, --size and --guidance of the images that a command is asked for."""
    defaults = SamplingSettings()
    options.add_argument(
        "--seed", type=seed, default=defaults.seed, metavar="N", help=f"random seed (default: {defaults.seed})"
    )
    options.add_argument(
        "--steps",
        type=count,
        default=defaults.steps,
        metavar="N",
        help=f"sampler steps per image (default: {defaults.steps})",
    )
    options.add_argument(
        "--size", type=count, metavar="PX", help="side of the square images in pixels (default: the base model's own)"
    )
    options.add_argument(
        "--guidance",
        type=number,
        default=defaults.guidance,
        metavar="X",
        help=f"classifier-free guidance scale (default: {defaults.guidance:g})",
    )


def add_own_words(options: Options) -> None:
    """Add --own-words, which confines concepts to their words."""
    options.add_argument(
        "--own-words",
        action="store_true",
        help="let each concept act only on its own word in the prompt (its token, or TOKEN CLASS if none was learned); "
        "its layers that receive image features act everywhere",
    )


# Types of values.  argparse names a type by its function: "invalid count value: 'many'".


def seed(text: str) -> int:
    """Read a random seed."""
    value = int(text)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be between 0 and {LARGEST_SEED}, not {text}")
    return value


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def number(text: str) -> float:
    """Read a finite number that float32 can hold."""
    value = float(text)
    if not abs(value) <= _LARGEST_NUMBER:  # NaN, too
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
    return value


def share(text: str) -> float:
    """Read a number between 0 and 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


def location(text: str) -> str:
    """Read a path, which need not exist."""
    if not text.strip():  # of a shell's variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("is empty")
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # too long, or with letters that no file has
        raise argparse.ArgumentTypeError(f"is no path ({getattr(error, 'strerror', None) or error})") from error
    return text


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value
