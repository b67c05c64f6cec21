"""Devices and precisions, by name."""

import torch

from .errors import UserError

OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # the name moved in torch 2.5


def resolve_device(name: str) -> torch.device:
    """Return the device with that name; "auto" means cuda if available, else mps, else cpu.

    Raises:
        UserError: there is no such device, or this machine does not have it.
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
    """Raise UserError if the device cannot train in that precision."""
    if dtype == "float16" and device.type == "cpu":
        raise UserError("float16 cannot train on the cpu: choose float32 or bfloat16.")
    if dtype == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        raise UserError("This graphics card has no bfloat16: choose float16 or float32.")


def best_dtype(device: torch.device) -> str:
    """Return the fast and safe precision for forward and backward passes on a device; factors stay in float32."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if _has_bfloat16(device) else "float16"


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a graphics card computes in bfloat16; PyTorch also counts older cards, which emulate it slowly."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
