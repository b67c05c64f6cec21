"""InfLoRA (Liang and Li, CVPR 2024): a frozen basis designed from the layer's inputs; A is trained.

Before a concept is trained, the inputs `H [n, N]` of each layer are collected on the model with all earlier concepts.
What those occupy is removed, `H' = H - M M^T H`, and B (the paper's dimensionality reduction matrix) is the top-r left
singular vectors of H'.  They are computed as the eigenvectors of `(I - M M^T) H H^T (I - M M^T)`.

Differs from the published code (github.com/liangyanshuo/InfLoRA) in M: there DualGPM keeps, from the inputs of every
task, as many directions as hold a share of their energy; here M spans the bases of the earlier concepts, since a bank
keeps concepts and nothing of their data.  So a concept takes exactly r directions, and all pairs are orthogonal.
"""

from torch import Generator, Tensor

from ... import subspace
from ..config import ResolvedConfig
from .method import Method, published_defaults, step_coefficients


def _start(
    Q: Tensor, config: ResolvedConfig, generator: Generator, covariance: Tensor | None, directions: Tensor | None
) -> Tensor:
    return subspace.spectral_basis(Q, config.rank, covariance)


INFLORA = Method(
    "inflora",
    _start,
    step_coefficients,
    constrained=True,
    defaults=published_defaults("accumulated"),
    needs_inputs=True,
)
