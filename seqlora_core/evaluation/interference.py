"""Measure how much concepts of a composition can interfere, from what their layers receive (Theorems 2, 7 and 8).

For concept i with inputs x_i, covariance Sigma_i and Pi_i the projector on span(B_i), per layer:

    captured energy  tr(Pi_i Sigma_i Pi_i),  residual energy  tr((I - Pi_i) Sigma_i)
    effective rank   tr(R) / |R|_2  of the residual  R = (I - Pi_i) Sigma_i (I - Pi_i)
    crosstalk        |A_j B_j^T x_i|^2 / |A_i B_i^T x_i|^2

If bases are orthogonal, later concepts can act on the residual only.  The forecast of a concept is the joint crosstalk
of all concepts learned after it: small numbers predict little forgetting.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor

from ..composition.selection import SelectedConcept
from ..model.activations import LayerInputs
from ..subspace import empty, extend, project

_POWER_ITERATIONS = 30
_POWER_BLOCK = 4


@dataclass(frozen=True)
class LayerEnergy:
    """How the energy of one layer's inputs divides between a concept's basis and the rest.

    Attributes:
        captured: mean of |x|^2 inside span(B).
        residual: mean of |x|^2 outside span(B).
        effective_rank: of the residual covariance.  1 means one dominating direction; higher is more harmless.
    """

    captured: float
    residual: float
    effective_rank: float

    @property
    def captured_share(self) -> float:
        """The captured share of all energy, in 0..1."""
        return self.captured / max(self.captured + self.residual, torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Diagnosis:
    """The measured energies and effects of the concepts of a composition.

    Attributes:
        concepts: names, in the order of training.
        energies: concept -> layer -> its energies.
        effects: layer -> [k, k], the mean over concept i's inputs (row) of |A_j B_j^T x_i|^2 (column).
        later: layer -> [k], the mean of |sum_{j > i} A_j B_j^T x_i|^2, the joint effect of all concepts after i.
    """

    concepts: tuple[str, ...]
    energies: Mapping[str, Mapping[str, LayerEnergy]]
    effects: Mapping[str, Tensor]
    later: Mapping[str, Tensor]

    def crosstalk(self, layer: str | None = None) -> Tensor:
        """Return the effect of concept j (column) on i (row) relative to i's own, in one layer or all: [k, k]."""
        effects = self.effects[layer] if layer else sum(self.effects.values())
        return _relative(effects, effects.diagonal()[:, None])

    def forecast(self) -> dict[str, float]:
        """Return, for each concept, the joint crosstalk of all later concepts over all layers."""
        own = sum(self.effects.values()).diagonal()
        disturbance = sum(self.later.values())
        return dict(zip(self.concepts, _relative(disturbance, own).tolist(), strict=True))

    def sentences(self) -> list[str]:
        """Describe each concept in one sentence."""
        forecast, table = self.forecast(), self.crosstalk()
        lines = []
        for i, name in enumerate(self.concepts):
            captured = mean(energy.captured_share for energy in self.energies[name].values())
            line = f"{name}: its basis captures {captured:.1%} of the energy of its layers' inputs; "
            after = table[i, i + 1 :]
            if len(after):
                worst = self.concepts[i + 1 + int(after.argmax())]
                line += f"later concepts add {forecast[name]:.2%} of its own effect, {worst} most ({after.max():.2%})."
            else:
                line += "nothing was learned after it."
            lines.append(line)
        return lines

    def as_dict(self) -> dict:
        """Return JSON-ready values per concept, pair and layer; None if there is no own effect to compare."""
        forecast, table = self.forecast(), self.crosstalk()
        return {
            "concepts": [self._concept(name, forecast[name]) for name in self.concepts],
            "crosstalk": {
                name: {other: _json(table[i, j].item()) for j, other in enumerate(self.concepts) if j != i}
                for i, name in enumerate(self.concepts)
            },
            "layers": {layer: self._layer(layer) for layer in self.effects},
        }

    def _concept(self, name: str, forecast: float) -> dict:
        energies = self.energies[name].values()
        return {
            "name": name,
            "forecast": _json(forecast),
            "captured_share": mean(energy.captured_share for energy in energies),
            "effective_rank": median(energy.effective_rank for energy in energies),
        }

    def _layer(self, layer: str) -> dict:
        table = self.crosstalk(layer)
        return {
            name: {
                **dataclasses.asdict(self.energies[name][layer]),
                "crosstalk": {other: _json(table[i, j].item()) for j, other in enumerate(self.concepts) if j != i},
            }
            for i, name in enumerate(self.concepts)
            if layer in self.energies[name]
        }


def _relative(effects: Tensor, own: Tensor) -> Tensor:
    """Divide effects by own effects: infinite if only the own effect is 0, and 0 if both are."""
    return torch.nan_to_num(effects / own, nan=0.0, posinf=math.inf)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


@torch.no_grad()
def diagnose(
    parts: Sequence[SelectedConcept], inputs_of: Callable[[SelectedConcept], Mapping[str, LayerInputs]]
) -> Diagnosis:
    """Measure how the concepts of a composition, with their strengths, act on each other.

    Args:
        parts: the concepts in the order of training.
        inputs_of: returns what each layer receives while the model with one concept samples it (see
            `sampling.inputs_while_sampling`); called once per concept, and its result is not stored.
    """
    energies: dict[str, dict[str, LayerEnergy]] = {}
    layers = dict.fromkeys(layer for part in parts for layer in part.adapters)
    effects = {layer: torch.zeros(len(parts), len(parts), dtype=torch.float64) for layer in layers}
    later = {layer: torch.zeros(len(parts), dtype=torch.float64) for layer in layers}
    for i, part in enumerate(parts):
        inputs = inputs_of(part)
        energies[part.name] = {
            layer: layer_energy(adapter.B, inputs[layer].covariance) for layer, adapter in part.adapters.items()
        }
        for layer in layers:
            joint = joint_effects(parts, layer, inputs[layer].covariance)
            effects[layer][i] = joint.diagonal()
            later[layer][i] = joint[i + 1 :, i + 1 :].sum()
    return Diagnosis(tuple(part.name for part in parts), energies, effects, later)


def layer_energy(B: Tensor, covariance: Tensor) -> LayerEnergy:
    """Divide the energy of inputs with this covariance [n, n] between span(B) and the rest, for a basis B [n, r]."""
    sigma = covariance.double()
    Q = extend(empty(sigma.shape[0]), B)  # orthonormal basis of span(B)
    residual = project(project(sigma, Q).mT, Q)
    left = float(residual.trace().clamp_min(0))
    norm = largest_eigenvalue(residual)
    return LayerEnergy(float(sigma.trace()) - left, left, left / norm if norm > 0 else 0.0)


def joint_effects(parts: Sequence[SelectedConcept], layer: str, covariance: Tensor) -> Tensor:
    """Compute E [k, k] with `|sum_{j in S} A_j B_j^T x|^2 = sum_{j, l in S} E_jl` for any set S, as a mean over x."""
    present = [(index, part.scaled()[layer]) for index, part in enumerate(parts) if layer in part.adapters]
    A = torch.cat([adapter.A for _, adapter in present], dim=1).double()  # [m, sum of ranks]
    B = torch.cat([adapter.B for _, adapter in present], dim=1).double()  # [n, sum of ranks]
    products = (A.mT @ A) * (B.mT @ covariance.double() @ B)
    owner = torch.tensor([index for index, adapter in present for _ in range(adapter.B.shape[1])])
    belongs = torch.nn.functional.one_hot(owner, len(parts)).double()  # [sum of ranks, k]
    return belongs.mT @ products @ belongs


def largest_eigenvalue(matrix: Tensor) -> float:
    """Compute the largest eigenvalue of a positive semidefinite matrix [n, n], by block power iteration."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(matrix.shape[0], _POWER_BLOCK, generator=generator, dtype=matrix.dtype)
    for _ in range(_POWER_ITERATIONS):
        block = torch.linalg.qr(matrix @ block).Q
    return float(torch.linalg.eigvalsh(block.mT @ matrix @ block).max())
