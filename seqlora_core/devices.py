"""Devices and precisions by name."""

import torch

from .errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" takes cuda, else mps, else cpu.

    Raises:
        UserError: this machine does not have it.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device: choose one of {', '.join(available)}.") from error
    if device.type not in available or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"This machine has no device {name!r}: choose one of {', '.join(available)}.")
    return device


def check_dtype(device: torch.device, dtype: str) -> None:
    """Raises UserError where training in that precision is not possible on that device."""
    if dtype == "float16" and device.type == "cpu":
        raise UserError("float16 cannot train on the cpu: choose float32 or bfloat16.")
    if dtype == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        raise UserError("This graphics card has no bfloat16: choose float16 or float32.")


def best_dtype(device: torch.device) -> str:
    """The precision for the passes that is fast and safe on a device; factors are float32 in any case."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if _has_bfloat16(device) else "float16"


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a graphics card computes in it; what PyTorch calls supported is emulated, and slow, on older ones."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
