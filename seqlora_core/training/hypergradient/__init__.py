"""Ways to compute the hypergradient `dPhi/dB` of `Phi(B) = L(A+(B), B)` (eqs. 9 and 15), one file each.

All of them have the signature of `interface.Hypergradient`.
"""

from .exact import exact
from .finite_difference import finite_difference
from .interface import Hypergradient
from .lookahead import lookahead

HYPERGRADIENTS: dict[str, Hypergradient] = {
    "exact": exact,
    "finite-difference": finite_difference,
    "lookahead": lookahead,
}
# Passes of each, beyond one per lower step.
PASSES = {"exact": 1, "finite-difference": 3, "lookahead": 1}

__all__ = ["HYPERGRADIENTS", "PASSES", "Hypergradient", "exact", "finite_difference", "lookahead"]
