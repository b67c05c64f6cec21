"""Write an update as factors, and cut it to a rank, so that it fits a LoRA file."""

import torch
from torch import Tensor

from ...model.adapters import Adapter


def as_factors(dW: Tensor) -> Adapter:
    """Write a full-rank update [m, n] as factors, one of which is the identity."""
    m, n = dW.shape
    return Adapter.from_factors(torch.eye(m), dW.mT) if m < n else Adapter.from_factors(dW, torch.eye(n))


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """Compute the best approximation of A B^T of at most that rank (Eckart and Young), and its share of |A B^T|^2.

    An adapter whose rank is low enough is returned unchanged, with a share of 1.
    """
    A, B = adapter.factors
    if A.shape[1] <= rank:
        return adapter, 1.0
    Q_A, R_A = torch.linalg.qr(A.double())
    Q_B, R_B = torch.linalg.qr(B.double())
    U, S, V = torch.linalg.svd(R_A @ R_B.mT, full_matrices=False)  # A B^T = Q_A (U S V) Q_B^T
    root = S[:rank].sqrt()
    energy = S.square()
    kept = float(energy[:rank].sum() / energy.sum()) if float(energy.sum()) > 0 else 1.0
    return Adapter.from_factors((Q_A @ U[:, :rank] * root).float(), (Q_B @ V[:rank].mT * root).float()), kept
