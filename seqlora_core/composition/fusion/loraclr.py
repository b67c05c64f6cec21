"""LoRACLR (Simsar et al., CVPR 2025): contrastive merging (github.com/enisimsar/LoRACLR, `weight_fusion.py`).

Per layer one offset dW, started at 0 and trained by AdamW (50 iterations, learning rate and weight decay 1e-4) so that
each concept's output is near that of its own adapter and away from the others'.  With `Y_i = X_i (W0 + s_i dW_i)^T` and
the merged `M_i = X_i (W0 + dW)^T`, both [N, m] and each taken as one long vector,

    L = mean_i [ |M_i - Y_i|^2 + max(0, margin - min_{j != i} |M_i - Y_j|)^2 ]  +  0.1 mse(M, Y)  +  0.001 |dW|_F

with a margin of 0.5; the best dW of all iterations is kept.  This is the published code's loss: only the nearest
negative counts, and the margin is in units of whole outputs, so that negatives are seldom within it.

Not reproduced: the text encoder's part (our concepts do not change it) and mixed precision.  Only some tokens per pass
are compared, because all tokens of all passes exceed the memory.  The published concepts have equally many tokens; if
ours do not, the shorter ones are padded with zeros, which every W maps to 0.

dW has full rank; the cut to the rank of the concepts loses much of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...model.adapters import Adapter
from ..selection import SelectedConcept, adapted_layers
from .fusion import Fusion, FusionSettings, Source
from .low_rank import as_factors

_WEIGHT_DECAY = 1e-4


def _run(parts: Sequence[SelectedConcept], source: Source, settings: FusionSettings) -> dict[str, Adapter]:
    layers, scaled = adapted_layers(parts), [part.scaled() for part in parts]
    samples = [{layer: x.samples for layer, x in source.inputs(part, layers).items()} for part in parts]
    fused = {}
    for layer in layers:
        source.between()
        X = pad_sequence([inputs[layer] for inputs in samples], batch_first=True)  # [k, N, n]
        W0 = source.weight(layer)
        Y = torch.stack([_output(x, W0, adapters.get(layer)) for x, adapters in zip(X, scaled, strict=True)])
        fused[layer] = as_factors(_optimize(X, Y, W0, settings))
    return fused


def _output(X: Tensor, W0: Tensor, adapter: Adapter | None) -> Tensor:
    Y = X @ W0.mT  # [N, n] -> [N, m]
    return Y if adapter is None else Y + X @ adapter.B @ adapter.A.mT


def contrastive_loss(dW: Tensor, X: Tensor, Y: Tensor, W0: Tensor, settings: FusionSettings) -> Tensor:
    """Compute L of the module's docstring.

    Args:
        dW: [m, n].
        X: inputs of the k concepts, [k, N, n].
        Y: outputs of each concept's own adapter, [k, N, m].
        W0: [m, n].
    """
    M = X @ (W0 + dW).mT  # [k, N, m]
    positive = (M - Y).square().sum((1, 2))  # [k]
    distances = torch.cdist(M.flatten(1), Y.flatten(1))  # [k, k]
    own = torch.eye(len(X), dtype=torch.bool, device=X.device)
    nearest = distances.masked_fill(own, torch.inf).amin(1)  # [k]
    negative = (settings.margin - nearest).clamp_min(0).square()
    mse = (M - Y).square().mean()
    return (positive + negative).mean() + settings.mse_weight * mse + settings.norm_weight * dW.norm()


def _optimize(X: Tensor, Y: Tensor, W0: Tensor, settings: FusionSettings) -> Tensor:
    dW = torch.zeros_like(W0).requires_grad_()
    optimizer = torch.optim.AdamW([dW], lr=settings.step_size, weight_decay=_WEIGHT_DECAY)
    best, least = dW.detach().clone(), torch.inf
    for _ in range(settings.iterations):
        with torch.enable_grad():
            loss = contrastive_loss(dW, X, Y, W0, settings)
            (dW.grad,) = torch.autograd.grad(loss, dW)
        if float(loss) < least:
            best, least = dW.detach().clone(), float(loss)
        optimizer.step()
    return best


LORACLR = Fusion("loraclr", _run, reads_base=True)
