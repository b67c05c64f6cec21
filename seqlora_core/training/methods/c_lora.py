"""C-LoRA (Smith et al., Continual Diffusion, TMLR 2024): plain LoRA that keeps off what earlier concepts changed.

Concept t is trained on the sum of all earlier ones, with a penalty on every weight that they have moved,

    lambda |  |sum_{j<t} dW_j| * dW_t  |^2 = lambda sum_ab S_ab^2 dW_ab^2,   S = sum_{j<t} A_j B_j^T, dW_t = A B^T,

elementwise per layer; the square makes the absolute value superfluous.

Lambda is the setting `self_regularization`.  We found no public code, so neither the weight nor whether layers are
summed, as here, or averaged could be checked.  What it does depends on the size of the updates' elements, so it has to
be chosen for each base: with Adam's steps of 1e-2 on a UNet of width 64, 100 is enough to keep apart, and at 1e8 a
second concept hardly learns (|dW|^2 is 0.0005, and 1.6 without the penalty).

Differs from the paper: it trains keys and values at rank 16, with a token from a random start and no class word; here
layers, rank and the learned word are those of all methods.
"""

from collections.abc import Sequence

from torch import Tensor

from ...model.adapters import Adapter
from ..config import ResolvedConfig
from .lora import random_start, step_both
from .method import Method, published_defaults


class SelfRegularization:
    """The penalty, with `S^2` [m, n] per layer in memory.

    Args:
        earlier: the sum of the earlier concepts per layer, on the device of the layer's factors; None where none acts.
        weight: lambda.
    """

    def __init__(self, earlier: Sequence[Adapter | None], weight: float) -> None:
        self._squares = [None if adapter is None else (adapter.up @ adapter.down).square() for adapter in earlier]
        self._weight = weight

    def __call__(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """Compute the penalty at `A [m, r]`, `B [n, r]`, one per layer: a scalar with its graph."""
        terms = zip(A, B, self._squares, strict=True)
        return self._weight * sum((S2 * (a @ b.mT).square()).sum() for a, b, S2 in terms if S2 is not None)


def _penalty(earlier: Sequence[Adapter | None], config: ResolvedConfig) -> SelfRegularization:
    return SelfRegularization(earlier, config.self_regularization)


C_LORA = Method(
    "c-lora",
    random_start,
    step_both,
    constrained=False,
    defaults=published_defaults("accumulated"),
    penalty=_penalty,
)
