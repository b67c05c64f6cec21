"""Every fusion against its definition, on small problems with a known answer."""

import pytest
import torch
from torch import Tensor

from seqlora_core.composition.fusion import FUSIONS, WITHOUT_BASE, FusionSettings, fuse
from seqlora_core.composition.fusion.loraclr import contrastive_loss
from seqlora_core.composition.selection import SelectedConcept
from seqlora_core.errors import UserError
from seqlora_core.model.activations import LayerInputs
from seqlora_core.model.adapters import Adapter

N, M = 12, 7
SPATIAL = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def the_same_numbers_in_every_test() -> None:
    GENERATOR.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def part(name: str, layer: str = SPATIAL, strength: float = 1.0, B: Tensor | None = None) -> SelectedConcept:
    B = randn(N, 2) if B is None else B
    return SelectedConcept(name, f"sks{name} thing", {layer: Adapter.from_factors(randn(M, B.shape[1]), B)}, strength)


class KnownInputs:
    """A base whose only layer reads what it is told to."""

    def __init__(self, rows: dict[str, Tensor], layer: str = SPATIAL) -> None:
        self.rows, self.layer, self.W0 = rows, layer, randn(M, N)
        self.ordinary = randn(200, N)

    def inputs(self, part: SelectedConcept, layers):
        return {self.layer: LayerInputs.from_samples(self.rows[part.name])}

    def words(self, part: SelectedConcept) -> Tensor:
        return self.rows[part.name]

    def captions(self, captions) -> Tensor:
        return self.ordinary

    def weight(self, layer: str) -> Tensor:
        return self.W0

    def between(self) -> None:
        pass


def update(adapter: Adapter) -> Tensor:
    return adapter.A @ adapter.B.mT


def fused(name: str, parts, source=None, **settings) -> Tensor:
    (adapter,) = fuse(FUSIONS[name], parts, FusionSettings(**settings), source).adapters.values()
    return update(adapter)


def own(part: SelectedConcept) -> Tensor:
    (adapter,) = part.scaled().values()
    return update(adapter)


def test_the_sum_adds_and_the_average_divides_by_the_strengths():
    parts = [part("a", strength=1.0), part("b", strength=0.5)]
    total = own(parts[0]) + own(parts[1])
    assert torch.allclose(fused("sum", parts), total, atol=1e-5)
    assert torch.allclose(fused("weighted-average", parts), total / 1.5, atol=1e-5)


def test_an_average_with_strengths_that_cancel_is_refused():
    with pytest.raises(UserError, match="add up to more than 0"):
        fused("weighted-average", [part("a"), part("b", strength=-1.0)])


@pytest.mark.parametrize("solver", ["exact", "lbfgs"])
def test_gradient_fusion_is_the_least_squares_solution(solver):
    """Stacked, `X dW^T = [X_i dW_i^T]` is an ordinary least squares problem."""
    parts = [part("a"), part("b", strength=0.7)]
    source = KnownInputs({"a": randn(30, N), "b": randn(40, N)})
    X = torch.cat([source.rows["a"], source.rows["b"]])
    Y = torch.cat([source.rows[p.name] @ own(p).mT for p in parts])
    solution = torch.linalg.lstsq(X, Y).solution.mT
    assert torch.allclose(fused("gradient-fusion", parts, source, ridge=0, solver=solver), solution, atol=1e-4)


def test_lbfgs_approaches_the_exact_solution_with_its_iterations():
    parts = [part("a"), part("b")]
    source = KnownInputs({name: randn(30, N) * torch.linspace(0.05, 1, N) for name in "ab"})
    exact = fused("gradient-fusion", parts, source, ridge=0)
    errors = [
        float((fused("gradient-fusion", parts, source, solver="lbfgs", iterations=count) - exact).norm())
        for count in (1, 5, 50)
    ]
    assert errors[0] > errors[1] > 100 * errors[2]


def test_gradient_fusion_of_one_concept_is_that_concept():
    alone = part("a")
    assert torch.allclose(fused("gradient-fusion", [alone], KnownInputs({"a": randn(30, N)})), own(alone), atol=1e-4)


def test_gradient_fusion_of_concepts_with_orthogonal_inputs_is_their_sum():
    U = torch.linalg.qr(randn(N, N)).Q
    parts = [part("a", B=U[:, :2]), part("b", B=U[:, 4:7])]
    source = KnownInputs({"a": randn(30, 4) @ U[:, :4].mT, "b": randn(30, 5) @ U[:, 4:9].mT})
    total = own(parts[0]) + own(parts[1])
    assert torch.allclose(fused("gradient-fusion", parts, source, solver="exact"), total, atol=1e-4)


def test_gradient_fusion_does_not_move_directions_that_nobody_reads():
    U = torch.linalg.qr(randn(N, N)).Q
    parts = [part("a"), part("b")]
    result = fused("gradient-fusion", parts, KnownInputs({name: randn(30, 5) @ U[:, :5].mT for name in "ab"}), ridge=0)
    assert float((result @ U[:, 5:]).abs().max()) <= 1e-4 * float(result.abs().max())


def test_gradient_fusion_protects_a_concept_that_does_not_adapt_the_layer():
    """Its target there is the base's own output."""
    silent = SelectedConcept("b", "sksb thing", {}, 1.0)
    source = KnownInputs({"a": 1e-2 * randn(30, N), "b": 1e2 * randn(30, N)})
    assert float(fused("gradient-fusion", [part("a"), silent], source).abs().max()) <= 1e-3


def test_custom_diffusion_meets_its_constraints_exactly():
    parts = [part("a", TEXT), part("b", TEXT, strength=0.5)]
    source = KnownInputs({"a": randn(3, N), "b": randn(4, N)}, TEXT)
    dW = fused("custom-diffusion", parts, source)
    for concept in parts:
        words = source.rows[concept.name]
        assert torch.allclose(words @ dW.mT, words @ own(concept).mT, atol=1e-4)


def test_custom_diffusion_gives_words_that_two_prompts_share_to_the_first():
    parts = [part("a", TEXT), part("b", TEXT)]
    shared, a, b = randn(2, N), randn(2, N), randn(3, N)
    dW = fused("custom-diffusion", parts, KnownInputs({"a": torch.cat([shared, a]), "b": torch.cat([shared, b])}, TEXT))
    for words, concept in ((shared, parts[0]), (a, parts[0]), (b, parts[1])):
        assert torch.allclose(words @ dW.mT, words @ own(concept).mT, atol=1e-4)


def test_custom_diffusion_changes_ordinary_captions_least_among_all_that_meet_the_constraints():
    parts = [part("a", TEXT), part("b", TEXT)]
    source = KnownInputs({"a": randn(3, N), "b": randn(4, N)}, TEXT)
    dW = fused("custom-diffusion", parts, source, ridge=0)
    C = torch.cat([source.rows["a"], source.rows["b"]])
    least = float((source.ordinary @ dW.mT).norm())
    free = torch.eye(N) - torch.linalg.pinv(C) @ C  # rows times this do not change the constraints
    for _ in range(20):
        other = dW + 0.05 * randn(M, N) @ free
        assert torch.allclose(C @ other.mT, C @ dW.mT, atol=1e-4)
        assert float((source.ordinary @ other.mT).norm()) > least


def test_custom_diffusion_sums_the_layers_that_are_not_keys_and_values_of_text():
    parts = [part("a"), part("b")]
    source = KnownInputs({"a": randn(3, N), "b": randn(4, N)})
    assert torch.allclose(fused("custom-diffusion", parts, source), own(parts[0]) + own(parts[1]), atol=1e-5)


def loraclr_problem(parts, source) -> tuple[Tensor, Tensor]:
    X = torch.stack([source.rows[p.name] for p in parts])
    return X, torch.stack([x @ (source.W0 + own(p)).mT for x, p in zip(X, parts, strict=True)])


def test_loraclr_lowers_its_loss_and_its_distance_to_every_own_output():
    parts = [part("a"), part("b"), part("c")]
    source = KnownInputs({p.name: randn(8, N) for p in parts})
    settings = FusionSettings(iterations=80, step_size=5e-2)
    dW = fused("loraclr", parts, source, iterations=80, step_size=5e-2)
    X, Y = loraclr_problem(parts, source)
    before, after = (
        contrastive_loss(offset, X, Y, source.W0, settings) for offset in (torch.zeros_like(source.W0), dW)
    )
    assert float(after) < 0.5 * float(before)
    base, merged = ((X @ (source.W0 + offset).mT - Y).square().sum((1, 2)) for offset in (0, dW))
    assert (merged < base).all()


def test_loraclr_of_one_concept_comes_to_that_concept():
    alone = part("a")
    source = KnownInputs({"a": randn(30, N)})
    result = fused("loraclr", [alone], source, iterations=200, step_size=0.1, norm_weight=0.0)
    assert float((result - own(alone)).norm()) < 0.05 * float(own(alone).norm())


def test_the_loss_of_loraclr_is_the_published_one():
    """Two concepts, one row, one output: everything can be counted by hand."""
    X, W0 = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[1.0]])
    Y = torch.tensor([[[1.5]], [[1.8]]])
    settings = FusionSettings(margin=1.0, mse_weight=0.1, norm_weight=0.01)
    # M = (1.2, 2.4): positives 0.09, 0.36; nearest others |1.2 - 1.8| = 0.6, |2.4 - 1.5| = 0.9: hinges 0.16, 0.01
    expected = (0.09 + 0.36 + 0.16 + 0.01) / 2 + 0.1 * (0.09 + 0.36) / 2 + 0.01 * 0.2
    assert float(contrastive_loss(torch.tensor([[0.2]]), X, Y, W0, settings)) == pytest.approx(expected, rel=1e-5)


def test_loraclr_heeds_every_word_of_names_of_different_length():
    parts = [part("a", TEXT), part("b", TEXT)]
    source = KnownInputs({"a": randn(2, N), "b": randn(5, N)}, TEXT)
    dW = fused("loraclr", parts, source, iterations=400, step_size=0.1, norm_weight=0.0)
    for concept in parts:
        words = source.rows[concept.name]
        assert ((words @ (dW - own(concept)).mT).norm(dim=1) < 0.1 * (words @ own(concept).mT).norm(dim=1)).all()


def test_ssr_merge_gives_every_concept_its_own_output_when_their_inputs_do_not_overlap():
    """What is read may overlap all the same: the sum of the two gives other outputs."""
    U = torch.linalg.qr(randn(N, N)).Q
    parts = [part("a"), part("b", strength=0.5)]
    source = KnownInputs({"a": randn(30, 2) @ U[:, :2].mT, "b": randn(40, 2) @ U[:, 2:4].mT})
    dW, summed = fused("ssr-merge", parts, source, routing_ridge=0), fused("sum", parts)
    for concept in parts:
        x = source.rows[concept.name]
        assert torch.allclose(x @ dW.mT, x @ own(concept).mT, atol=1e-4)
        assert not torch.allclose(x @ summed.mT, x @ own(concept).mT, atol=0.1)


def test_ssr_merge_is_least_squares_among_updates_that_read_the_concepts_bases():
    parts = [part("a"), part("b", strength=0.7), part("c", strength=-1.0)]
    source = KnownInputs({"a": randn(30, N), "b": randn(40, N), "c": randn(50, N)})
    B = torch.cat([p.adapters[SPATIAL].B for p in parts], dim=1)
    X = torch.cat([source.rows[p.name] for p in parts])
    Y = torch.cat([source.rows[p.name] @ own(p).mT for p in parts])
    solution = (B @ torch.linalg.lstsq(X @ B, Y).solution).mT
    assert torch.allclose(fused("ssr-merge", parts, source, routing_ridge=0), solution, atol=1e-4)


def test_ssr_merge_of_two_concepts_of_rank_one_is_the_router_counted_by_hand():
    """Each reads one axis; a's only input lies on both, b's on b's.  Its ridge is on the mean over the two inputs.

    Without the ridge G = [[1, 1], [1, 2]] and Q = [[1, 1], [0, 1]] (both halved), so R = [[1, 0], [-1, 1]].
    """
    parts = [
        SelectedConcept(name, name, {SPATIAL: Adapter.from_factors(torch.tensor([[a]]), torch.eye(2)[:, [axis]])}, 1.0)
        for name, a, axis in (("a", 1.0, 0), ("b", 10.0, 1))
    ]
    source = KnownInputs({"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[0.0, 1.0]])})
    assert torch.allclose(fused("ssr-merge", parts, source, routing_ridge=0), torch.tensor([[-9.0, 10.0]]), atol=1e-5)
    # With 0.5 on the mean, [[2, 1], [1, 3]] is inverted in place of G: R = [[2, 1], [-1, 2]] / 5.
    assert torch.allclose(fused("ssr-merge", parts, source, routing_ridge=0.5), torch.tensor([[-1.6, 4.2]]), atol=1e-5)


def test_ssr_merge_leaves_a_layer_of_one_concept_as_it_is():
    alone, elsewhere = part("a", strength=0.5), part("b", TEXT)
    merged = fuse(FUSIONS["ssr-merge"], [alone, elsewhere], FusionSettings(), KnownInputs({})).adapters
    assert torch.equal(update(merged[SPATIAL]), own(alone))
    assert torch.equal(update(merged[TEXT]), own(elsewhere))


@pytest.mark.parametrize("density", [0.1, 0.2, 0.7])
def test_ties_is_that_of_peft(density):
    from peft.utils.merge_utils import ties

    parts = [part("a"), part("b", strength=0.5), part("c", strength=-0.3)]
    theirs = ties([update(p.adapters[SPATIAL]) for p in parts], torch.tensor([1.0, 0.5, -0.3]), density)
    assert torch.allclose(fused("ties", parts, density=density), theirs, atol=1e-6)


def test_ties_trims_elects_and_averages_as_counted_by_hand():
    """Of four numbers two stay; the second column has more mass below zero, and only its concept counts there."""
    rows = {"a": [3.0, 2.0, 0.1, 0.0], "b": [1.0, -4.0, 0.2, 0.0]}
    parts = [
        SelectedConcept(name, name, {SPATIAL: Adapter(torch.tensor([[1.0]]), torch.tensor([row]))}, 1.0)
        for name, row in rows.items()
    ]
    assert fused("ties", parts, density=0.5).tolist() == [[2.0, -4.0, 0.0, 0.0]]


def test_ties_of_one_concept_keeps_its_largest_numbers():
    alone = part("a")
    kept = fused("ties", [alone], density=0.25)
    least = own(alone).abs().flatten().sort(descending=True).values[N * M // 4 - 1]
    assert torch.allclose(kept, own(alone).where(own(alone).abs() >= least, 0.0), atol=1e-6)
    assert torch.allclose(fused("ties", [alone], density=1.0), own(alone), atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(FUSIONS) - set(WITHOUT_BASE)))
def test_a_fusion_that_looks_at_activations_asks_for_a_base(name):
    with pytest.raises(UserError, match=f"{name}.*--base"):
        fuse(FUSIONS[name], [part("a")], FusionSettings())


@pytest.mark.parametrize("name", ["gradient-fusion", "loraclr", "ssr-merge"])
def test_a_fusion_can_be_stopped_before_any_layer(name, monkeypatch):
    """These take minutes at Stable Diffusion's size, and a graph has a Cancel."""
    parts = [part("a", TEXT), part("b", TEXT)]
    source = KnownInputs({"a": randn(3, N), "b": randn(4, N)}, TEXT)

    def cancel() -> None:
        raise InterruptedError

    monkeypatch.setattr(source, "between", cancel)
    with pytest.raises(InterruptedError):
        fuse(FUSIONS[name], parts, FusionSettings(), source)


def test_a_lower_rank_keeps_the_best_part_and_says_how_much():
    parts = [part("a"), part("b")]
    exact = fused("sum", parts)
    S = torch.linalg.svdvals(exact)
    result = fuse(FUSIONS["sum"], parts, FusionSettings(rank=3))
    (cut,) = result.adapters.values()
    assert cut.A.shape[1] == cut.B.shape[1] == result.rank == 3
    assert result.kept_energy == pytest.approx(float(S[:3].square().sum() / S.square().sum()), abs=1e-5)
    assert float((update(cut) - exact).norm()) == pytest.approx(float(S[3:].norm()), rel=1e-3)


@pytest.mark.parametrize("name", ["sum", "gradient-fusion", "custom-diffusion", "ssr-merge"])
def test_the_closed_forms_have_no_more_than_the_sum_of_the_ranks(name):
    parts = [part("a", TEXT), part("b", TEXT)]
    source = KnownInputs({"a": randn(3, N), "b": randn(4, N)}, TEXT)
    result = fuse(FUSIONS[name], parts, FusionSettings(), source)
    assert (result.rank, result.kept_energy) == (4, 1.0)
    assert fuse(FUSIONS[name], parts, FusionSettings(rank=4), source).kept_energy == 1.0


def test_the_reported_memory_is_that_of_the_tensors_alive_together():
    from seqlora_core.composition.fusion.peak_memory import PeakMemory

    outside = torch.zeros(1000)
    with PeakMemory() as memory:
        for _ in range(5):
            block = torch.ones(250_000)  # 1 MB, replaced in every turn: two are alive for an instant
            block += outside[0]
            view = block[10:]
        del block, view
    assert 2_000_000 <= memory.peak_bytes <= 2_001_000


@pytest.mark.parametrize(
    "values",
    [
        {"solver": "guess"},
        {"rank": 0},
        {"iterations": 0},
        {"ridge": -1.0},
        {"routing_ridge": -1.0},
        {"density": 0.0},
        {"density": 1.5},
    ],
)
def test_settings_out_of_range_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        FusionSettings(**values)
