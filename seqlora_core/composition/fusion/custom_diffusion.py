"""Custom Diffusion's merge (Kumari et al., CVPR 2023; github.com/adobe-research/custom-diffusion, `composenW.py`).

For keys and values of text, in closed form: `W = argmin |W C_reg^T - W0 C_reg^T|` subject to `W C^T = V`, where the
rows of C_reg are text features of ordinary captions, those of C the features of the concepts' words, and V the outputs
of each concept's own weights for its words.  With `G = C_reg^T C_reg` and `d = C G^-1`,

    dW = (V - W0 C^T) (d C^T)^-1 d,   V - W0 C^T = [s_1 A_1 B_1^T C_1^T ...],

so W0 drops out, and the rank is at most the sum of the concepts' ranks.  Of equal rows of C only the first is kept, as
in the published code: prompts that begin alike share them.  If words are linearly dependent, the constraints hold in
the least-squares sense.  W changes ordinary captions most if there are about as many words as the text is wide.

Not reproduced: the paper trains full matrices and a token embedding per concept, and takes its captions from a data set
that is not published with it.  Here the merge is applied to the concepts' adapters with our own plain captions; layers
other than the text's keys and values, which Custom Diffusion does not change, are summed.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from ...model.activations import TEXT_GROUP, input_group
from ...model.adapters import Adapter, sum_adapters
from ..selection import SelectedConcept
from .fusion import Fusion, FusionSettings, Source

_NOUNS = (
    *("man", "woman", "child", "dog", "cat", "horse", "bird", "car", "bicycle", "house"),
    *("tree", "flower", "table", "chair", "bottle", "book", "toy", "boat", "train", "cake"),
)
_PLACES = (
    *("standing on a street in the rain", "beside a white wall", "under a blue sky at noon", "in front of a mountain"),
    *("on the grass with people around", "at night with a bright light", "near the sea and some rocks"),
    *("in a small kitchen", "on a wooden floor with shadows", "seen from above in the snow"),
)
ORDINARY_CAPTIONS = tuple(f"a {noun} {place}" for noun, place in product(_NOUNS, _PLACES))


def _run(parts: Sequence[SelectedConcept], source: Source, settings: FusionSettings) -> dict[str, Adapter]:
    fused = sum_adapters([(part.adapters, part.strength) for part in parts])
    words = without_repeats([source.words(part).double() for part in parts])  # C_i [t_i, n]
    ordinary = source.captions(ORDINARY_CAPTIONS).double()
    directions = constrained_directions(torch.cat(words), ordinary, settings.ridge)
    for layer in fused:
        if input_group(layer) == TEXT_GROUP:
            fused[layer] = _merge(layer, parts, words, directions)
    return fused


def without_repeats(words: Sequence[Tensor]) -> list[Tensor]:
    """Remove from each matrix `[t_i, n]` the rows that occur earlier, in it or in a matrix before it."""
    seen: set[bytes] = set()
    kept = []
    for rows in words:
        keys = [row.numpy().tobytes() for row in rows]
        first = [key not in seen and key not in keys[:index] for index, key in enumerate(keys)]
        seen.update(keys)
        kept.append(rows[torch.tensor(first)])
    return kept


def constrained_directions(C: Tensor, ordinary: Tensor, ridge: float) -> Tensor:
    """Compute `(d C^T)^-1 d` [t, n]; row k maps the k-th word to 1, all other words to 0, and changes captions least.

    Args:
        C: [t, n] features of the concepts' words.
        ordinary: [T, n] features of ordinary captions.
        ridge: added to their Gram matrix, relative to its mean diagonal, in case they do not span the space.
    """
    gram = ordinary.mT @ ordinary
    gram = gram + (ridge * gram.diagonal().mean()) * torch.eye(gram.shape[0], dtype=gram.dtype)
    d = torch.cholesky_solve(C.mT, torch.linalg.cholesky(gram)).mT  # C G^-1
    return torch.linalg.pinv(d @ C.mT, hermitian=True) @ d


def _merge(layer: str, parts: Sequence[SelectedConcept], words: Sequence[Tensor], directions: Tensor) -> Adapter:
    A, B, first = [], [], 0
    for part, C in zip(parts, words, strict=True):
        if layer in part.adapters:
            A_i, B_i = (factor.double() for factor in part.scaled()[layer].factors)
            A.append(A_i)
            B.append(directions[first : first + len(C)].mT @ (C @ B_i))  # [n, t_i] [t_i, r]
        first += len(C)
    return Adapter.from_factors(torch.cat(A, dim=1).float(), torch.cat(B, dim=1).float())


CUSTOM_DIFFUSION = Fusion("custom-diffusion", _run, reads_base=True)
