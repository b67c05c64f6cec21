"""SSR-Merge (Wei et al., ICML 2026; github.com/nagara214/SSR-Merge, `ssr_merge/core.py`): routing in rank space.

Per layer the concepts' factors are stacked, `A = [s_1 A_1 ...]` and `B = [B_1 ...]`, and a router R [k, k] between them
sends what a concept's own inputs X_i excite to that concept's own coefficients.  With `Z_i = B^T X_i`, whose rows of
block i are `H_i = B_i^T X_i`, and N inputs in all,

    dW = A R B^T,   R = Q G^-1,   G = sum_i Z_i Z_i^T / N + e I,   Q = [H_1 Z_1^T; H_2 Z_2^T; ...] / N.

Apart from the ridge e, A R is the least-squares solution `min_C sum_i |C Z_i - s_i A_i H_i|^2`: gradient fusion's
problem among the updates that read B only, so that the rank is the sum of the concepts' ranks.  As published, e is 1e-4
and not relative to G, and on a layer only those concepts count that adapt it; a concept alone there stays as it is.

Not reproduced: the published inputs are all tokens of one prompt per concept in one denoising step of a transformer.
Here they are those of gradient fusion (see `activation_source`), so that both fusions read the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...model.adapters import Adapter, sum_adapters
from ..selection import SelectedConcept
from .fusion import Fusion, FusionSettings, Source


def _run(parts: Sequence[SelectedConcept], source: Source, settings: FusionSettings) -> dict[str, Adapter]:
    fused = sum_adapters([(part.adapters, part.strength) for part in parts])
    shared = [layer for layer in fused if sum(layer in part.adapters for part in parts) > 1]
    G = {layer: torch.zeros(fused[layer].rank, fused[layer].rank, dtype=torch.float64) for layer in shared}
    Q: dict[str, list[Tensor]] = {layer: [] for layer in shared}  # the rows of each concept, [r_i, k]
    tokens = dict.fromkeys(shared, 0)
    for part in parts:  # one concept's activations in memory at a time
        own = [layer for layer in shared if layer in part.adapters]
        inputs = source.inputs(part, own) if own else {}
        for layer in own:
            B = fused[layer].B.double()
            ZZ = B.mT @ inputs[layer].gram.double() @ B
            first = sum(len(rows) for rows in Q[layer])
            Q[layer].append(ZZ[first : first + part.adapters[layer].rank])
            G[layer] += ZZ
            tokens[layer] += inputs[layer].tokens
    for layer in shared:
        source.between()
        A, B = fused[layer].factors
        R = router(torch.cat(Q[layer]) / tokens[layer], G[layer] / tokens[layer], settings.routing_ridge)
        fused[layer] = Adapter.from_factors((A.double() @ R).float(), B)
    return fused


def router(Q: Tensor, G: Tensor, ridge: float) -> Tensor:
    """Compute `Q (G + e I)^-1` [k, k]; where e is 0 and G has no inverse, with its pseudo-inverse.

    Args:
        Q: [k, k].
        G: [k, k], symmetric.
        ridge: e.
    """
    return Q @ torch.linalg.pinv(G + ridge * torch.eye(len(G), dtype=G.dtype), hermitian=True)


SSR_MERGE = Fusion("ssr-merge", _run, reads_base=True)
