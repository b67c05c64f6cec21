"""Interference of concepts, where the answer is known."""

import json

import pytest
import torch
from training_runs import encoded, random_concept, resolved

from seqlora_core.bank import Bank
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.selection import SelectedConcept, select
from seqlora_core.evaluation.interference import diagnose, largest_eigenvalue, layer_energy
from seqlora_core.model.activations import LayerInputs, capture_inputs
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.sd15 import find_layers
from seqlora_core.training.objective import heldout_loss
from seqlora_core.training.trainer import train_concept

EYE = torch.eye(6)


def part(name: str, A: torch.Tensor, B: torch.Tensor, strength: float = 1.0) -> SelectedConcept:
    return SelectedConcept(name, name, {"layer": Adapter.from_factors(A, B)}, strength)


def test_energy_inside_and_outside_a_basis_and_its_effective_rank():
    covariance = torch.tensor([5.0, 3.0, 2.0, 2.0, 2.0, 0.0]).diag()
    energy = layer_energy(7 * EYE[:, :2], covariance)  # the length of a basis does not matter
    assert (energy.captured, energy.residual) == pytest.approx((8.0, 6.0))
    assert energy.effective_rank == pytest.approx(3.0)
    assert energy.captured_share == pytest.approx(8 / 14)


def test_the_best_basis_of_theorem_7_leaves_the_least_energy():
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    covariance = root @ root.mT
    best = torch.linalg.eigh(covariance).eigenvectors[:, -2:]
    least = layer_energy(best, covariance).residual
    others = [layer_energy(torch.linalg.qr(torch.randn(6, 2)).Q, covariance).residual for _ in range(20)]
    assert least < min(others)


def test_crosstalk_is_the_energy_that_others_add_to_the_inputs_of_a_concept():
    x = {"a": 2 * EYE[:1], "b": 3 * EYE[1:2], "c": EYE[2:3] + EYE[3:4]}
    a = part("a", 5 * EYE[:, :1], EYE[:, :1])
    b = part("b", EYE[:, :1], EYE[:, [1]] + 0.5 * EYE[:, [0]])  # it hears half of what a reads
    c = part("c", -2 * EYE[:, :1], EYE[:, [2]] + 0.25 * EYE[:, [0]], strength=2.0)
    found = diagnose([a, b, c], lambda p: {"layer": LayerInputs.from_samples(x[p.name])})
    # on a's inputs: a makes 10, b 1, c -2; b and c together -1
    assert found.crosstalk()[0].tolist() == pytest.approx([1.0, 1 / 100, 4 / 100])
    assert found.crosstalk()[1].tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert found.forecast() == pytest.approx({"a": 1 / 100, "b": 0.0, "c": 0.0})
    assert "c most (4.00%)" in found.sentences()[0]
    assert "nothing was learned after it" in found.sentences()[2]


def test_a_layer_that_a_concept_does_not_adapt_counts_as_disturbed_only():
    a = part("a", EYE[:, :1], EYE[:, :1])
    b = SelectedConcept(
        "b", "b", {"layer": a.adapters["layer"], "other": Adapter.from_factors(3 * EYE[:, :1], EYE[:, :1])}, 1.0
    )
    inputs = {name: LayerInputs.from_samples(EYE[:1]) for name in ("layer", "other")}
    found = diagnose([a, b], lambda p: inputs)
    assert found.forecast()["a"] == pytest.approx(1 + 9)
    assert list(found.energies["a"]) == ["layer"]


def test_a_layer_without_an_effect_of_its_own_has_no_number_in_the_json():
    """Imported files have such layers; a quotient with zero is no JSON."""
    dead = SelectedConcept(
        "a",
        "a",
        {
            "dead": Adapter.from_factors(0 * EYE[:, :1], EYE[:, :1]),
            "layer": Adapter.from_factors(EYE[:, :1], EYE[:, :1]),
        },
        1.0,
    )
    b = SelectedConcept("b", "b", {"dead": Adapter.from_factors(EYE[:, :1], EYE[:, :1])}, 1.0)
    inputs = {name: LayerInputs.from_samples(EYE[:1]) for name in ("dead", "layer")}
    document = json.loads(json.dumps(diagnose([dead, b], lambda p: inputs).as_dict(), allow_nan=False))
    assert document["layers"]["dead"]["a"]["crosstalk"] == {"b": None}
    assert document["crosstalk"] == {"a": {"b": pytest.approx(1)}, "b": {"a": pytest.approx(1)}}


def test_the_largest_eigenvalue_is_found_also_beside_a_close_one():
    Q = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    values = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert largest_eigenvalue(Q * values @ Q.mT) == pytest.approx(1.0, rel=1e-2)
    assert largest_eigenvalue(torch.zeros(4, 4, dtype=torch.float64)) == 0.0


def test_only_the_residual_of_an_orthogonal_bank_is_disturbed(denoiser, bank):
    """Theorem 8: on the captured part of its inputs a concept does not see later ones; as JSON too."""
    for name in ("a", "b"):
        config = resolved(rank=2, steps=6, lr_coefficients=1e-2, layers="all")
        train_concept(denoiser, encoded(random_concept(ord(name))), bank, ConceptSpec(name, f"sks{name}", name), config)
    parts = select(Bank.open(bank.folder), [("a", 1.0), ("b", 1.0)])
    layers = find_layers(denoiser.unet)

    def inputs_of(part: SelectedConcept) -> dict[str, LayerInputs]:
        with attach(layers, part.scaled()):
            return capture_inputs(layers, lambda: heldout_loss(denoiser, random_concept(5), resolved(), 2))

    def captured_part_of(part: SelectedConcept) -> dict[str, LayerInputs]:
        captured = {}
        for name, inputs in inputs_of(part).items():
            Q = torch.linalg.qr(part.adapters[name].B).Q
            captured[name] = LayerInputs(Q @ Q.mT @ inputs.gram @ Q @ Q.mT, inputs.tokens, inputs.samples)
        return captured

    disturbed, captured = diagnose(parts, inputs_of), diagnose(parts, captured_part_of)
    assert disturbed.forecast()["a"] > 1e-3
    assert captured.forecast()["a"] <= 1e-6 * disturbed.forecast()["a"]
    document = json.loads(json.dumps(disturbed.as_dict()))
    assert document["crosstalk"]["a"]["b"] == pytest.approx(disturbed.forecast()["a"])
    assert set(document["layers"]) == set(layers)
