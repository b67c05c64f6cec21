"""The compared training methods against their definitions, where the answer is known."""

import pytest
import torch
from torch import Tensor
from training_runs import encoded, learn, random_concept, resolved

from seqlora_core import subspace
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.errors import UserError
from seqlora_core.model.activations import capture_inputs
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.sd15 import find_layers
from seqlora_core.training.factor_optimizer import FactorOptimizer
from seqlora_core.training.methods import METHODS
from seqlora_core.training.methods.c_lora import SelfRegularization
from seqlora_core.training.objective import heldout_loss
from seqlora_core.training.trainer import train_concept

EYE = torch.eye(6, dtype=torch.float64)


def same_span(first: Tensor, second: Tensor) -> bool:
    first, second = (torch.linalg.qr(basis.double()).Q for basis in (first, second))
    return torch.allclose(first @ first.mT, second @ second.mT, atol=1e-4)


def inflora_basis(Q: Tensor, covariance: Tensor, rank: int) -> Tensor:
    return METHODS["inflora"].start(Q, resolved(method="inflora", rank=rank), torch.Generator(), covariance, None)


def test_inflora_takes_the_strongest_directions_that_are_free():
    strengths = torch.tensor([9.0, 8.0, 7.0, 1.0, 0.5, 0.1]).double()
    assert same_span(inflora_basis(subspace.empty(6), strengths.diag(), 2), EYE[:, [0, 1]])
    assert same_span(inflora_basis(EYE[:, [0, 2]], strengths.diag(), 2), EYE[:, [1, 3]])


def test_inflora_removes_what_is_occupied_before_it_looks_for_directions():
    """The inputs lie along (1, 1, 0, ...): with the first axis taken, what is left of them is the second axis."""
    h = (EYE[:, 0] + EYE[:, 1])[:, None]
    assert same_span(inflora_basis(EYE[:, :1], h @ h.mT, 1), EYE[:, [1]])


def test_inflora_stays_free_where_its_inputs_have_no_energy_left():
    basis = inflora_basis(EYE[:, :2], torch.tensor([5.0, 4.0, 0, 0, 0, 0]).double().diag(), 3)
    assert torch.allclose(basis.mT @ basis, torch.eye(3).double(), atol=1e-9)
    assert float((EYE[:, :2].mT @ basis).abs().max()) <= 1e-9


def test_inflora_freezes_the_left_singular_vectors_of_the_inputs_of_the_accumulated_model(denoiser, bank):
    layers = find_layers(denoiser.unet)
    train_concept(
        denoiser,
        encoded(random_concept(1)),
        bank,
        ConceptSpec("a", "sksa", "a"),
        resolved(rank=2, steps=6, layers="all"),
    )
    data, config = random_concept(2), resolved(method="inflora", rank=3, steps=5, layers="all")
    first = bank.load()["a"]
    with attach(layers, first):
        inputs = capture_inputs(layers, lambda: heldout_loss(denoiser, data, config, 8), samples_per_pass=1000)
    train_concept(denoiser, encoded(data), bank, ConceptSpec("b", "sksb", "b"), config)
    second = bank.load()["b"]
    for name in list(layers)[::5]:
        M = torch.linalg.qr(first[name].B.double()).Q
        H = inputs[name].samples.double().mT  # [n, N]
        U = torch.linalg.svd(H - M @ (M.mT @ H), full_matrices=False).U
        assert same_span(second[name].B, U[:, :3])


class OneNumber:
    """L(a, b) = (a b - 5)^2 / 2 with single numbers as factors: dL/da = (a b - 5) b, dL/db = (a b - 5) a."""

    difference_step = 1e-2

    def loss(self, A, B):
        return (A[0] * B[0] - 5).square().sum() / 2

    def gradients(self, A, B):
        a, b = A[0], B[0]
        return float(self.loss(A, B)), [(a * b - 5) * b], [(a * b - 5) * a]


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        # From a = 1, b = 2 with step sizes of 0.1: dL/da = -6 and dL/db = -3 at the start.
        ("lora", {}, (1.6, 2.3)),
        ("c-lora", {}, (1.6, 2.3)),
        ("orthogonal", {}, (1.6, 2.0)),
        ("inflora", {}, (1.6, 2.0)),
        # b follows dL/db at the new a, (1.6 * 2 - 5) * 1.6 = -2.88.
        ("alternating", {}, (1.6, 2.288)),
        # b follows (1.6 * 2 - 5) (1.6 + 2 * da+/db) = -3.24 with da+/db = -0.1 (2 a b - 5) = 0.1; then a at the new b.
        ("seqlora", {"hypergradient": "exact"}, (1 + 0.1 * 2.676 * 2.324, 2.324)),
        # 2 dL/db(a+, b) - dL/db(a, b) = 2 * -2.88 + 3.
        ("seqlora", {"hypergradient": "lookahead", "lower_step": "repeat"}, (1 + 0.1 * 2.724 * 2.276, 2.276)),
        # The same b; a goes on from 1.6 by what the pass there gives, (1.6 * 2 - 5) * 2 = -3.6.
        ("seqlora", {}, (1.96, 2.276)),
    ],
)
def test_one_iteration_is_the_methods_definition(method, settings, expected):
    lower, upper = (FactorOptimizer([torch.tensor([[x]]).double()], "gradient", 0.1, clip=0) for x in (1.0, 2.0))
    Q = [subspace.empty(1)]
    METHODS[method].iterate(OneNumber(), lower, upper, Q, resolved(method=method, **settings))
    assert (lower.parameters[0].item(), upper.parameters[0].item()) == pytest.approx(expected)


def test_the_penalty_of_c_lora_is_that_of_its_paper_counted_by_hand():
    """Earlier concepts that cancel in a weight leave it free; a layer that none changed is free altogether."""
    up, down = torch.eye(2), torch.tensor([[1.0, -1.0], [3.0, 0.0]])
    penalty = SelfRegularization([Adapter(up, down), None], weight=10.0)
    A, B = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])  # dW = [[1, 3], [2, 6]]
    assert float(penalty([A, 7 * A], [B, B])) == pytest.approx(10 * (1 + 9 + 36))


def test_the_gradient_of_c_lora_is_that_of_its_penalty_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    earlier = [Adapter(*(torch.randn(*shape, generator=generator).double() for shape in ((5, 4), (4, 7)))), None]
    A, B = ([torch.randn(n, 2, generator=generator).double().requires_grad_() for _ in "12"] for n in (5, 7))
    gradients = torch.autograd.grad(SelfRegularization(earlier, 3.0)(A, B), [*A, *B], materialize_grads=True)
    S2 = (earlier[0].up @ earlier[0].down).square()
    G = 2 * 3.0 * S2 * (A[0] @ B[0].mT)
    expected = [G @ B[0], torch.zeros_like(A[1]), G.mT @ A[0], torch.zeros_like(B[1])]
    assert all(torch.allclose(found, right) for found, right in zip(gradients, expected, strict=True))


def test_c_lora_keeps_off_the_weights_that_earlier_concepts_changed(denoiser, bank):
    def overlap(weight: float) -> float:
        """The share of the new concept's energy that lies where the first one's does."""
        learn(denoiser, bank, "b", random_concept(2), method="c-lora", self_regularization=weight, **strong)
        loaded = bank.load()
        bank.remove("b")
        first, new = ({layer: a.up @ a.down for layer, a in loaded[name].items()} for name in "ab")
        shared = sum(float((first[layer] * dW).square().sum()) for layer, dW in new.items())
        return shared / sum(float(dW.square().sum()) for dW in new.values())

    strong = {"steps": 20, "lr_coefficients": 1e-2, "lr_basis": 1e-2, "layers": "cross-kv"}
    learn(denoiser, bank, "a", random_concept(1), method="lora", **strong)
    assert overlap(100.0) < 0.5 * overlap(0.0)


@pytest.mark.parametrize("settings", [{"train_on": "bare"}, {"acts_on": "own-words", "token_vectors": 1}])
def test_c_lora_without_earlier_concepts_in_its_model_is_refused(settings):
    with pytest.raises(UserError, match="c-lora keeps off what earlier concepts changed"):
        resolved(method="c-lora", **settings)


@pytest.mark.parametrize("method", ["orthogonal", "inflora"])
def test_a_frozen_basis_is_the_same_after_one_step_and_after_many(denoiser, bank, method):
    for name, steps in (("short", 1), ("long", 8)):
        config = resolved(method=method, rank=2, steps=steps, train_on="bare", lr_coefficients=1e-2)
        train_concept(denoiser, encoded(random_concept(3)), bank, ConceptSpec("a", "sksa", "a"), config)
        bank.rename("a", name)
        concept = bank.load([bank.concept(name)])[name]
        bank.remove(name)
        if name == "short":
            short = concept
    assert all(torch.equal(short[layer].B, concept[layer].B) for layer in concept)
    assert any(not torch.equal(short[layer].A, concept[layer].A) for layer in concept)


def test_the_ridge_term_is_the_method_s_own_where_none_is_given(denoiser, bank):
    """With A at zero and B orthonormal the term is eps/2 times the rank, in every layer."""
    data = random_concept(1)

    def first_loss(name, **settings):
        config = resolved(steps=1, rank=2, layers="all", train_on="bare", **settings)
        return train_concept(denoiser, encoded(data), bank, ConceptSpec(name, f"sks{name}", "thing"), config).metrics[
            "first_loss"
        ]

    assert first_loss("a") == first_loss("b", ridge=0)
    term = first_loss("c", method="lora") - first_loss("d", method="lora", ridge=0)
    assert term == pytest.approx(1e-4 / 2 * 2 * len(find_layers(denoiser.unet)), rel=0.02)


@pytest.mark.parametrize("settings", [{"method": "lora"}, {"method": "orthogonal", "column_sampling": "independent"}])
def test_every_concept_of_a_bank_begins_with_a_draw_of_its_own(denoiser, bank, settings):
    """One seed is the default for all: had they one draw too, they would all lie in one subspace."""
    for number, name in enumerate(("a", "b", "c")):
        config = resolved(rank=2, steps=1, layers="all", **settings)
        train_concept(denoiser, encoded(random_concept(number)), bank, ConceptSpec(name, f"sks{name}", name), config)
    loaded = bank.load()
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        pairs = [[torch.linalg.qr(loaded[name][layer].B).Q for name in (first, second)] for layer in loaded["a"]]
        shared = [float((one.mT @ other).square().sum() / 2) for one, other in pairs]
        assert sum(shared) / len(shared) < 0.2  # rank over width, 2/64 to 2/32, is to be expected


def test_independent_draws_take_no_regard_of_what_others_hold(denoiser, bank):
    """Also where that is nearly everything: the basis that was drawn and trained with is the one that is kept."""
    config = resolved(method="orthogonal", column_sampling="independent", rank=20, steps=1, layers="all")
    for number, name in enumerate(("a", "b", "c")):
        train_concept(denoiser, encoded(random_concept(number)), bank, ConceptSpec(name, f"sks{name}", name), config)
        for A, B in (adapter.factors for adapter in bank.load()[name].values()):
            assert torch.allclose(B.mT @ B, torch.eye(20), atol=1e-5)
            assert A.norm() > 0


def test_images_of_the_class_have_no_part_in_where_a_basis_starts(denoiser, bank):
    config = resolved(method="inflora", rank=2, steps=1)
    bases = []
    for data in (random_concept(3, prior=2), random_concept(3)):
        train_concept(denoiser, encoded(data), bank, ConceptSpec("a", "sksa", "thing"), config)
        bases.append({layer: adapter.B for layer, adapter in bank.load()["a"].items()})
        bank.remove("a")
    assert all(torch.equal(bases[0][layer], bases[1][layer]) for layer in bases[0])
