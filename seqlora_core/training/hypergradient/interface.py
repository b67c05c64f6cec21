"""What a hypergradient is, and what it needs of the loss and of the lower level."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Loss = Tensor | float
"""A loss that may still be on the device, where a step reads it only once (see `objective.read`)."""

StepSizes = Callable[[Sequence[Tensor]], list[Tensor]]
"""Maps the gradients of A to the factors D of the lower step `A+ = A - D g`."""


class Objective(Protocol):
    """The loss `L(A, B)` of one minibatch, fixed during an iteration; `A [m, r]` and `B [n, r]`, one per layer.

    Attributes:
        difference_step: relative step at which a central difference of the gradient is accurate.
    """

    difference_step: float

    def loss(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """Return L(A, B) as a scalar with its graph."""

    def gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[Loss, list[Tensor], list[Tensor]]:
        """Return L, dL/dA and dL/dB at (A, B), from one forward and backward pass."""


class Hypergradient(Protocol):
    """A way to compute the hypergradient `dPhi/dB` of `Phi(B) = L(A+(B), B)` (eqs. 9 and 15)."""

    def __call__(
        self, objective: Objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
    ) -> tuple[Loss, list[Tensor]]:
        """Compute the hypergradient at (A, B).

        Args:
            A: [m, r] per layer.
            B: [n, r] per layer.
            step_sizes: the factors D of each lower step; constants for the derivative.
            inner_steps: the number of lower steps from A to A+.

        Returns:
            L(A, B), and one gradient [n, r] per layer.
        """
