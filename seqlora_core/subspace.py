"""Subspaces of a layer's input space: what earlier concepts occupy, and what is left of it.

Everything here maps tensors to tensors.  `Q [n, k]` is an orthonormal basis of the span of all earlier
bases `B_j [n, r_j]` of one layer; the projector of eq. 17 is `P = I - Q Q^T`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

ColumnSampling = Literal["without-replacement", "independent"]
# A direction counts as new if at least this share of it is left after the projection: ten times the rounding of float32
# files, and less than the overlap up to which bases count as orthogonal.
RANK_TOLERANCE = 5e-6
CONTRAST_FLOOR = 0.1
_ROUNDING = 1e-6  # share of a projected basis that may lie in span(Q)
_BLOCK = 64
_BLOCK_ENTRIES = 2**22


def empty(width: int) -> Tensor:
    """Return the occupied subspace of a layer without concepts, [n, 0], float64."""
    return torch.zeros(width, 0, dtype=torch.float64)


def project(B: Tensor, Q: Tensor) -> Tensor:
    """Compute `P B`, the part of `B [n, r]` outside span(Q) (eq. 17).

    The projection is applied twice: the first pass leaves an error proportional to what it removed, which the second
    removes ("twice is enough", Giraud et al. 2005).
    """
    for _ in range(2):
        B = B - Q @ (Q.mT @ B)
    return B


def reproject_if_needed(B: Tensor, Q: Tensor) -> Tensor:
    """Project `B [n, r]` once more, in float64, if more of it lies in span(Q) than rounding leaves.

    A graphics card may have projected it with matrix products of ten-bit mantissas (TF32).
    """
    inside = (Q.mT @ B.double()).norm() / B.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return B if inside <= _ROUNDING else project(B.double(), Q).to(B.dtype)


def extend(Q: Tensor, B: Tensor) -> Tensor:
    """Extend `Q [n, k]` to an orthonormal basis of span(Q) + span(B), in float64: [n, k + rank of P B].

    Columns of `B [n, r]` that add no direction (a basis that lost rank) take up no room.
    """
    Q, B = Q.double(), B.double()
    norms = B.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    fresh = project(B / norms, Q)
    U, S, _ = torch.linalg.svd(fresh, full_matrices=False)
    U = project(U[:, S > RANK_TOLERANCE], Q)
    return torch.cat([Q, torch.linalg.qr(U).Q], dim=1)


def occupied(bases: Iterable[Tensor], width: int) -> Tensor:
    """Compute `Q [n, k]` from the bases `B_j [n, r_j]` of all earlier concepts."""
    Q = empty(width)
    columns = torch.cat([empty(width), *(B.double() for B in bases)], dim=1)
    for block in columns.split(_BLOCK, dim=1):  # one decomposition for many concepts: large banks have thousands
        Q = extend(Q, block)
    return Q


def overlaps(B: Tensor, owner: Sequence[int], count: int, at_least: Tensor | None = None) -> Tensor:
    """Measure how far the spans of one layer's bases are from orthogonal, for every pair of `count` concepts.

    An entry is the largest cosine of the principal angles between two spans, which is the largest singular value of
    `Q_j^T Q_i` for orthonormal bases (Bjorck and Golub 1973).  It is 1 where the spans share a direction, whatever
    their ranks, and 0 where the constraint of eq. 4 holds or a concept has no basis here.  Directions below
    `RANK_TOLERANCE` do not count.  Computed in float64.

    Args:
        B: all bases side by side, [n, sum of ranks].
        owner: the concept of each column.
        at_least: [count, count], values known from other layers.  Entries become the larger of the two; a pair that
            cannot exceed its known value costs no decomposition.

    Returns:
        [count, count], symmetric, on the CPU; the diagonal is 0.
    """
    owner = torch.as_tensor(owner, dtype=torch.int64, device=B.device)
    order = torch.argsort(owner, stable=True)
    rows = (B if torch.equal(order, torch.arange(len(order), device=B.device)) else B[:, order]).double().mT
    concepts, ranks = owner[order].unique_consecutive(return_counts=True)
    cosines = _orthonormal_products(rows @ rows.mT, ranks).cpu()
    concepts, ranks = concepts.cpu(), ranks.cpu()
    table = torch.zeros(count, count, dtype=torch.float64) if at_least is None else at_least.double().triu(1)

    # The Frobenius norm of a block bounds its largest singular value, so most blocks need no decomposition.
    place = torch.arange(len(ranks)).repeat_interleave(ranks)
    squares = cosines.new_zeros(len(ranks), len(place)).index_add(0, place, cosines.square())
    bounds = squares.new_zeros(len(ranks), len(ranks)).index_add(1, place, squares).sqrt()
    first, second = (bounds > table[concepts[:, None], concepts]).triu(1).nonzero(as_tuple=True)
    starts = ranks.cumsum(0) - ranks
    sizes, kind = torch.stack([ranks[first], ranks[second]], 1).unique(dim=0, return_inverse=True)
    for index, (height, width) in enumerate(sizes.tolist()):
        for pairs in (kind == index).nonzero()[:, 0].split(max(1, _BLOCK_ENTRIES // (height * width))):
            i, j = first[pairs], second[pairs]
            lines, columns = starts[i, None] + torch.arange(height), starts[j, None] + torch.arange(width)
            largest = _largest_singular_values(cosines[lines[:, :, None], columns[:, None, :]]).clamp_max(1)
            table[concepts[i], concepts[j]] = torch.maximum(table[concepts[i], concepts[j]], largest)
    return table + table.mT


def _orthonormal_products(products: Tensor, ranks: Tensor) -> Tensor:
    """`Q^T Q` of orthonormal bases Q_i of all spans, from `B^T B [sum of ranks, sum of ranks]`.

    Q_i = B_i W_i, with W_i from the eigenvectors of B_i^T B_i for unit columns; a direction that does not count is 0.
    In float64, what rounding makes of the products stays below 1e-5 even for the weakest directions that count.
    """
    norms = products.diagonal().sqrt().clamp_min(torch.finfo(products.dtype).tiny)
    products = products / norms[:, None] / norms
    starts = ranks.cumsum(0) - ranks
    transforms = []
    for rank in ranks.unique().tolist():
        own = starts[ranks == rank, None] + torch.arange(rank, device=ranks.device)  # [c, r]
        eigenvalues, eigenvectors = torch.linalg.eigh(products[own[:, :, None], own[:, None, :]])
        counts = eigenvalues > RANK_TOLERANCE**2  # squares of the singular values
        transforms.append((own, eigenvectors.mT * torch.where(counts, eigenvalues.abs().rsqrt(), 0)[:, :, None]))
    for _ in range(2):  # the rows, then, by symmetry, the columns
        for own, transform in transforms:
            products[own] = transform @ products[own]
        products = products.mT.contiguous()
    return products


def _largest_singular_values(M: Tensor) -> Tensor:
    """Of a batch [p, r, s]: [p].  The eigenvalues of the smaller Gram matrix cost a fraction of a decomposition."""
    size = M.flatten(1).norm(dim=1).clamp_min(torch.finfo(M.dtype).tiny)
    M = M / size[:, None, None]
    gram = M @ M.mT if M.shape[1] <= M.shape[2] else M.mT @ M
    return size * torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()


def random_basis(Q: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Draw a Gaussian, project it off span(Q) and orthonormalize it: [n, r]."""
    gaussian = torch.randn(Q.shape[0], rank, generator=generator, dtype=torch.float64)
    return _orthonormal_outside(gaussian, Q)


def spectral_basis(Q: Tensor, rank: int, covariance: Tensor) -> Tensor:
    """Compute the top-r eigenvectors of the compressed covariance `P Sigma P`: [n, r].

    By Theorem 7 of the paper they minimize the exposed residual energy `tr((I - Pi) Sigma)` among all rank-r
    projectors that respect the constraint.
    """
    P_sigma = project(covariance.cpu().double(), Q)
    compressed = project(P_sigma.mT, Q)
    # If Sigma has no energy left outside span(Q), directions of Q must not rank among those with eigenvalue 0.
    compressed = (compressed + compressed.mT) / 2 - (1 + compressed.trace()) * Q @ Q.mT
    eigenvectors = torch.linalg.eigh(compressed).eigenvectors  # ascending eigenvalues
    return _orthonormal_outside(eigenvectors.flip(-1)[:, :rank], Q)


def contrastive_directions(Q: Tensor, covariance: Tensor, protected: Tensor) -> Tensor:
    """Rank all directions outside span(Q) by how much more energy the new concept has along them than other prompts.

    (ours) They are the solutions v of `P Sigma P v = lambda (P K P + floor I) v`, the largest lambda first, with Sigma
    the covariance of the new concept's inputs and K that of the protected inputs, both [n, n].  The floor, a share of
    K's mean eigenvalue, keeps directions without any energy from coming first.  If K is 0, the directions are the
    eigenvectors of `P Sigma P`.

    Args:
        covariance: Sigma.
        protected: K.

    Returns:
        V [n, n - k], scaled so that a step along any column changes the protected outputs equally,
        `V^T (K + floor I) V = c I`; the first column has length 1.
    """
    free = torch.linalg.svd(Q, full_matrices=True).U[:, Q.shape[1] :] if Q.shape[1] else None
    own, others = (S.cpu().double() for S in (covariance, protected))
    if free is not None:  # without, all directions are free, and products with the identity take half of the time
        own, others = (free.mT @ S @ free for S in (own, others))
    mean = protected.cpu().double().trace().item() / len(Q)
    floor = CONTRAST_FLOOR * mean if mean > 0 else 1.0
    half = torch.linalg.cholesky(others + floor * torch.eye(len(others), dtype=torch.float64))
    whitened = torch.linalg.solve_triangular(half, own, upper=False)
    whitened = torch.linalg.solve_triangular(half, whitened.mT, upper=False)  # half^-1 own half^-T, symmetric
    eigenvectors = torch.linalg.eigh((whitened + whitened.mT) / 2).eigenvectors.flip(-1)
    directions = torch.linalg.solve_triangular(half.mT, eigenvectors, upper=True)
    directions = directions.contiguous() if free is None else free @ directions
    return directions / directions[:, 0].norm()


def contrastive_basis(Q: Tensor, rank: int, directions: Tensor) -> Tensor:
    """Compute an orthonormal basis of the first r `contrastive_directions` [n, n - k], outside span(Q): [n, r]."""
    return _orthonormal_outside(directions[:, :rank], Q)


def shared_columns(Q: Tensor, rank: int, generator: torch.Generator, sampling: ColumnSampling) -> Tensor:
    """Take `r` columns of the random orthogonal matrix O [n, n] that all layers of this width share: [n, r].

    This is the basis of Orthogonal Adaptation (Po et al., CVPR 2024).

    Args:
        sampling: "without-replacement" takes columns that no earlier concept occupies, which makes their orthogonality
            exact; "independent" draws among all n, as the paper does, so that two concepts may share a column.
    """
    width = Q.shape[0]
    shared = torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    ).Q
    order = torch.randperm(width, generator=generator)
    if sampling == "independent":
        return shared[:, order[:rank]]
    taken = (Q.mT @ shared[:, order]).square().sum(0)  # occupied share of each column: 0 or 1 in a bank of this method
    freest = order[torch.argsort((taken * 1e6).round(), stable=True)[:rank]]
    return _orthonormal_outside(shared[:, freest], Q)


def _orthonormal_outside(B: Tensor, Q: Tensor) -> Tensor:
    basis = torch.linalg.qr(project(B, Q)).Q
    return project(basis, Q)
