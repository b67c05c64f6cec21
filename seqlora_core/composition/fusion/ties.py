"""TIES-Merging (Yadav et al., NeurIPS 2023; github.com/prateeky2806/ties-merging): trim, elect a sign, merge.

Per layer, on the whole updates `dW_i = A_i B_i^T`:

1. Trim: of each update keep the numbers of largest magnitude, a share of `density` (0.2 in the paper).
2. Elect: each number's sign is that of the sum of the trimmed updates, the sign with more mass.
3. Merge: the mean over those updates that have the elected sign there, each times its strength s_i.

The paper's lambda, which scales the result, is 1.  Strengths act after the election, as weights do in PEFT, so that one
strength for all is lambda; a concept of strength 0 still votes and counts.

Differs from the paper: it trims a model's update as a whole; here, as in PEFT's `ties_svd`, every layer is trimmed on
its own, among the concepts that adapt it.  A mean does not grow with the number of concepts, as a sum does.

The result has full rank; the cut to the rank of the concepts loses much of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...model.adapters import Adapter
from ..selection import SelectedConcept, adapted_layers
from .fusion import Fusion, FusionSettings, Source
from .low_rank import as_factors


def _run(parts: Sequence[SelectedConcept], source: Source | None, settings: FusionSettings) -> dict[str, Adapter]:
    fused = {}
    for layer in adapted_layers(parts):
        own = [part for part in parts if layer in part.adapters]
        updates = torch.stack([part.adapters[layer].up @ part.adapters[layer].down for part in own])
        fused[layer] = as_factors(merge(updates, [part.strength for part in own], settings.density))
    return fused


def merge(updates: Tensor, strengths: Sequence[float], density: float) -> Tensor:
    """Compute the merged update [m, n] of k updates [k, m, n] (see the module's docstring)."""
    trimmed = torch.stack([trim(update, density) for update in updates])
    positive = trimmed.sum(0) >= 0
    agrees = torch.where(positive, trimmed > 0, trimmed < 0)
    weights = torch.tensor(strengths, dtype=updates.dtype).view(-1, 1, 1)
    return (weights * trimmed * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def trim(update: Tensor, density: float) -> Tensor:
    """Set all numbers of an update to 0 except the share of largest magnitude, at least one."""
    largest = update.abs().flatten().topk(max(int(density * update.numel()), 1)).indices
    trimmed = torch.zeros_like(update).flatten()
    trimmed[largest] = update.flatten()[largest]
    return trimmed.view_as(update)


TIES = Fusion("ties", _run)
