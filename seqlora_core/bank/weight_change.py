"""How much of a model a LoRA file changes: the Frobenius norm of each layer's change, from its factors.

Formats as in LyCORIS (https://github.com/KohakuBlueleaf/LyCORIS) and ComfyUI's `comfy/weight_adapter`.  DoRA, OFT and
GLoRA multiply the base's weights, so that a file alone does not say how much they change.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import UserError
from .lora_file import alpha_value

_DIFFERENCES = ("diff", "diff_b", "w_norm", "b_norm")
_MOST_ENTRIES = 2**28  # of a layer's dW; the largest convolution of SD1.5 has 2^25
_CHUNK_ENTRIES = 2**22


def squared_norm(parts: Mapping[str, Tensor], alpha: float | None) -> float | None:
    """Return |dW|^2 of one layer, the changes of its bias included; None where it cannot be told from the file.

    Args:
        parts: `up`, `down`, `mid`, `alpha`, `diff`, `hada_w1_a`, `lokr_w1`, ...
        alpha: what the tool stored elsewhere; None is the rank.
    """
    parts = {part: tensor.float() for part, tensor in parts.items()}
    differences = [parts.pop(part) for part in _DIFFERENCES if part in parts]
    try:
        alpha = alpha_value(parts.pop("alpha"), "a layer") if "alpha" in parts else alpha
        total = _of_factors(parts, alpha) if parts else 0.0
    except (UserError, RuntimeError, ValueError, KeyError, IndexError):  # shapes that do not fit each other
        return None
    if total is None:
        return None
    total += math.fsum(float(tensor.double().square().sum()) for tensor in differences)
    return total if math.isfinite(total) else None


def _of_factors(parts: dict[str, Tensor], alpha: float | None) -> float | None:
    kinds = set(parts)
    if {"up", "down"} <= kinds <= {"up", "down", "mid"}:
        down = parts["down"]
        if "mid" in parts:  # CP decomposition of a convolution
            down = torch.einsum("abkl,bi->aikl", _bounded(parts["mid"], down), down.flatten(1))
        return _scale(alpha, down.shape[0]) ** 2 * _of_product(parts["up"].flatten(1), down.flatten(1))
    if (
        {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
        <= kinds
        <= {*("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")}
    ):
        return _scale(alpha, parts["hada_w1_b"].shape[0]) ** 2 * _of_hadamard_product(parts)
    if kinds and kinds <= {f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}:
        # |kron(w1, w2)| = |w1| |w2|
        rank = next((parts[part].shape[0] for part in ("lokr_w2_b", "lokr_w1_b") if part in parts), None)
        scale = 1.0 if rank is None else _scale(alpha, rank)
        return scale**2 * _of_kronecker_factor(parts, "lokr_w1") * _of_kronecker_factor(parts, "lokr_w2")
    return None


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _bounded(*factors: Tensor) -> Tensor:
    """The first factor, where the product of these is not larger than any model's layer."""
    if math.prod(max(factor.shape) for factor in factors) > _MOST_ENTRIES:
        raise ValueError("a change too large for any layer of SD1.5")
    return factors[0]


def _of_product(up: Tensor, down: Tensor) -> float:
    """|up @ down|^2 without the product: tr((up^T up) (down down^T))."""
    if up.shape[1] != down.shape[0] or up.shape[1] ** 2 > _MOST_ENTRIES:
        raise ValueError("factors that do not fit")
    up, down = up.double(), down.double()
    return max(0.0, float(((up.mT @ up) * (down @ down.mT)).sum()))


def _of_kronecker_factor(parts: Mapping[str, Tensor], name: str) -> float:
    if name in parts:
        return float(parts[name].double().square().sum())
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if name == "lokr_w2" and "lokr_t2" in parts:
        _bounded(a, b)
        return float(torch.einsum("ijkl,jr,ip->prkl", parts["lokr_t2"], b, a).double().square().sum())
    return _of_product(a.flatten(1), b.flatten(1))


def _of_hadamard_product(parts: Mapping[str, Tensor]) -> float:
    """|(w1_a w1_b) * (w2_a w2_b)|^2, a few rows at a time."""
    first, second = ((parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}")) for n in (1, 2))
    _bounded(first[0], first[1])
    width = first[1][0].numel() if first[2] is None else first[1].shape[1] * first[2][0, 0].numel()
    rows = first[0].shape[0 if first[2] is None else 1]
    total = 0.0
    for taken in torch.arange(rows).split(max(1, _CHUNK_ENTRIES // max(1, width))):
        total += float((_rows(*first, taken) * _rows(*second, taken)).double().square().sum())
    return total


def _rows(a: Tensor, b: Tensor, core: Tensor | None, taken: Tensor) -> Tensor:
    if core is None:
        return a[taken].flatten(1) @ b.flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a[:, taken]).flatten(1)
