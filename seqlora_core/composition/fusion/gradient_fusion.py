"""Gradient fusion (Mix-of-Show, Gu et al., NeurIPS 2023; github.com/TencentARC/Mix-of-Show, `gradient_fusion.py`).

Per layer `W = argmin sum_i |W X_i - (W0 + s_i dW_i) X_i|^2` on each concept's own activations X_i, started from W0.
With `G_i = X_i X_i^T` and `W = W0 + dW` the normal equations are `dW sum_i G_i = sum_i s_i dW_i G_i` (as in RegMean,
Jin et al., ICLR 2023), so that W0 drops out and the minimizer nearest to W0 is, for `dW_i = A_i B_i^T`,

    dW = [s_1 A_1 ...] [G_1 B_1 ...]^T (sum_i G_i)^+ :   its rank is at most the sum of the concepts' ranks.

That is the solver "exact".  "lbfgs", the default, is the published optimizer (L-BFGS, history 25, strong Wolfe) on the
same loss, which also needs the G_i only.  Its 50 iterations are the published number for spatial layers; the published
code takes 500 for keys and values of the text.  Stopping before directions of little energy are fitted matters: with 16
concepts on the mini base, whose prompts share most of their words, the exact minimum has an identity of 0.015 (with a
ridge of 1e-2, 0.32), 500 iterations reach 0.30, and 50 reach 0.38.

Not reproduced: the text encoder's LoRAs and learned token embeddings of the paper's ED-LoRA, which our concepts do not
have; and the paper captures the inputs of spatial layers after keys and values of the text have been fused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...model.activations import input_group
from ...model.adapters import Adapter
from ..selection import SelectedConcept, adapted_layers
from .fusion import Fusion, FusionSettings, Source

# Gram matrices are summed in float32: directions with less energy than this, relative to the largest, are rounding.
_TOLERANCE = 1e-7


def _run(parts: Sequence[SelectedConcept], source: Source, settings: FusionSettings) -> dict[str, Adapter]:
    grams: dict[str, Tensor] = {}  # group of layers -> sum of G_i [n, n]
    tokens: dict[str, int] = {}
    coefficients: dict[str, list[Tensor]] = {}  # layer -> s_i A_i [m, r]
    targets: dict[str, list[Tensor]] = {}  # layer -> G_i B_i [n, r]
    layers = adapted_layers(parts)
    for part in parts:  # one concept's activations in memory at a time
        inputs = source.inputs(part, layers)
        for group, x in {input_group(layer): x for layer, x in inputs.items()}.items():
            grams[group] = grams.get(group, 0) + x.gram.double()
            tokens[group] = tokens.get(group, 0) + x.tokens
        for layer, adapter in part.scaled().items():
            A, B = adapter.factors
            coefficients.setdefault(layer, []).append(A.double())
            targets.setdefault(layer, []).append(inputs[layer].gram.double() @ B.double())
    inverses: dict[str, Tensor] = {}
    fused = {}
    for layer in coefficients:
        source.between()
        group = input_group(layer)
        A, GB = torch.cat(coefficients[layer], dim=1), torch.cat(targets[layer], dim=1)
        if settings.solver == "lbfgs":
            A, B = _by_lbfgs(A, GB, grams[group], tokens[group], settings.iterations)
        else:
            if group not in inverses:
                inverses[group] = pseudo_inverse(grams[group], settings.ridge)
            B = inverses[group] @ GB
        fused[layer] = Adapter.from_factors(A.float(), B.float())
    return fused


def pseudo_inverse(gram: Tensor, ridge: float) -> Tensor:
    """Compute `(G + e I)^-1` on the directions where G [n, n] has energy, and 0 on the others.

    Args:
        ridge: e, relative to the mean of diag G.
    """
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    inverted = 1 / (values + ridge * values.mean())
    inverted[values <= _TOLERANCE * values.max()] = 0
    return vectors * inverted @ vectors.mT


def _by_lbfgs(A: Tensor, GB: Tensor, gram: Tensor, tokens: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Minimize the mean squared error in its Gram form with the published optimizer; `R = A GB^T`.

    Args:
        A: [m, k].
        GB: [n, k].
        gram: the sum of the G_i, [n, n].
        tokens: the number of inputs in `gram`.

    Returns:
        Factors [m, k] and [n, k] of the result; every step lies in the span of A.
    """
    R = A @ GB.mT
    scale = 1 / (max(tokens, 1) * A.shape[0])
    dW = torch.zeros_like(R).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [dW],
        lr=1,
        max_iter=iterations,
        history_size=25,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
    )

    def loss() -> Tensor:  # without the constant
        with torch.no_grad():
            WG = dW @ gram
            dW.grad = 2 * scale * (WG - R)
            return scale * ((WG - 2 * R) * dW).sum()

    optimizer.step(loss)
    basis = torch.linalg.qr(A).Q
    return basis, dW.detach().mT @ basis


GRADIENT_FUSION = Fusion("gradient-fusion", _run, reads_base=True)
