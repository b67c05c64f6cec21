"""Ways to the hypergradient `dPhi/dB` of `Phi(B) = L(A+(B), B)` (eqs. 9, 15), one file each, one signature.

    (objective, A, B, step_sizes, inner_steps) -> (loss, gradient)

`objective` is a `bilevel.Objective`; `A [m, r]` and `B [n, r]` are lists with one tensor a layer; `step_sizes` maps
the gradients of A to the factors D of the lower step `A+ = A - D g`, constants to the derivative.  The result is the
loss at `(A, B)` and one gradient [n, r] a layer.
"""

from .exact import exact
from .finite_difference import finite_difference
from .lookahead import lookahead

HYPERGRADIENTS = {"exact": exact, "finite-difference": finite_difference, "lookahead": lookahead}

__all__ = ["HYPERGRADIENTS", "exact", "finite_difference", "lookahead"]
