"""Properties of the subspaces that concepts live in."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlora_core import subspace

WIDTH = 24


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def occupied_spaces(draw, most: int = 16):
    ranks = draw(st.lists(st.integers(1, 4), max_size=4))
    seed = draw(st.integers(0, 10_000))
    scale = 10.0 ** draw(st.integers(-3, 3))
    bases = [scale * torch.randn(WIDTH, r, generator=generator(seed + i)) for i, r in enumerate(ranks)]
    return bases, subspace.occupied(bases, WIDTH)


@settings(deadline=None, max_examples=40)
@given(occupied_spaces())
def test_occupied_is_an_orthonormal_basis_of_all_earlier_spans(space):
    bases, Q = space
    assert Q.shape[1] == sum(B.shape[1] for B in bases)
    assert torch.allclose(Q.mT @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), atol=1e-10)
    for B in bases:
        assert float(subspace.project(B.double(), Q).norm()) <= 1e-9 * float(B.norm())


@settings(deadline=None, max_examples=40)
@given(occupied_spaces(), st.integers(1, 6), st.integers(0, 99))
def test_projection_is_idempotent_and_leaves_nothing_in_the_occupied_span(space, rank, seed):
    _, Q = space
    B = torch.randn(WIDTH, rank, generator=generator(seed), dtype=torch.float64)
    projected = subspace.project(B, Q)
    assert torch.allclose(subspace.project(projected, Q), projected, atol=1e-12)
    assert Q.shape[1] == 0 or float((Q.mT @ projected).abs().max()) < 1e-12


@settings(deadline=None, max_examples=30)
@given(
    occupied_spaces(),
    st.integers(1, 6),
    st.integers(0, 99),
    st.sampled_from(["random", "spectral", "contrastive", "columns"]),
)
def test_every_start_is_orthonormal_and_free(space, rank, seed, kind):
    _, Q = space
    if kind == "random":
        B = subspace.random_basis(Q, rank, generator(seed))
    elif kind in ("spectral", "contrastive"):
        x, other = torch.randn(2, 200, WIDTH, generator=generator(seed))
        sigma, kept = x.mT @ x / 200, other[:3].mT @ other[:3] / 3
        B = subspace.spectral_basis(Q, rank, sigma)
        if kind == "contrastive":
            B = subspace.contrastive_basis(Q, rank, subspace.contrastive_directions(Q, sigma, kept))
    else:
        B = subspace.shared_columns(Q, rank, generator(seed), "without-replacement")
    assert torch.allclose(B.mT @ B, torch.eye(rank, dtype=B.dtype), atol=1e-9)
    assert Q.shape[1] == 0 or float((Q.mT @ B).abs().max()) < 1e-12


def test_a_basis_that_lost_rank_takes_up_no_more_room_than_it_spans():
    B = torch.randn(WIDTH, 3, generator=generator(0))
    B[:, 2] = B[:, 0] - B[:, 1]
    assert subspace.occupied([B], WIDTH).shape[1] == 2


def test_spectral_start_captures_more_energy_than_any_random_one():
    """Theorem 7: the top eigenvectors of P Sigma P minimize the residual energy under the constraint."""
    x = torch.randn(500, WIDTH, generator=generator(1)) @ torch.diag(torch.linspace(0.1, 3, WIDTH))
    sigma = (x.mT @ x / 500).double()
    Q = subspace.occupied([torch.randn(WIDTH, 5, generator=generator(2))], WIDTH)

    def residual(B):
        return float(sigma.trace() - (B.mT @ sigma @ B).trace())

    best = residual(subspace.spectral_basis(Q, 3, sigma))
    assert all(best < residual(subspace.random_basis(Q, 3, generator(seed))) for seed in range(50))


def test_contrastive_start_finds_what_only_the_new_concept_reads():
    """Common directions have most of the energy of both; the new concept's own one is where it differs."""
    common, own, foreign = torch.linalg.qr(torch.randn(WIDTH, 3, generator=generator(3), dtype=torch.float64)).Q.mT
    sigma = 100 * torch.outer(common, common) + torch.outer(own, own)
    kept = 100 * torch.outer(common, common) + torch.outer(foreign, foreign)
    Q = subspace.empty(WIDTH)
    assert abs(float(common @ subspace.spectral_basis(Q, 1, sigma))) > 0.99
    directions = subspace.contrastive_directions(Q, sigma, kept)
    assert abs(float(own @ subspace.contrastive_basis(Q, 1, directions))) > 0.99


def test_contrastive_start_is_spectral_where_there_is_nothing_to_keep():
    x = torch.randn(50, WIDTH, generator=generator(4), dtype=torch.float64) * torch.linspace(0.1, 3, WIDTH)
    Q, nothing = subspace.occupied([torch.randn(WIDTH, 2, generator=generator(5))], WIDTH), torch.zeros(WIDTH, WIDTH)
    spectral = subspace.spectral_basis(Q, 3, x.mT @ x)
    contrastive = subspace.contrastive_basis(Q, 3, subspace.contrastive_directions(Q, x.mT @ x, nothing))
    assert torch.allclose(spectral @ spectral.mT, contrastive @ contrastive.mT, atol=1e-8)


@given(st.integers(0, WIDTH - 1), st.integers(1, 30), st.integers(0, 1000))
def test_others_notice_all_contrastive_directions_alike_and_the_new_concept_the_first_most(occupied, tokens, seed):
    x, others = torch.randn(2, tokens, WIDTH, generator=generator(seed), dtype=torch.float64)
    sigma, kept = x.mT @ x / tokens, others.mT @ others / tokens
    Q = subspace.occupied([torch.randn(WIDTH, occupied, generator=generator(seed + 1))], WIDTH)
    V = subspace.contrastive_directions(Q, sigma, kept)
    assert V.shape == (WIDTH, WIDTH - Q.shape[1])
    assert float((Q.mT @ V).abs().amax() if Q.shape[1] else 0) < 1e-9
    floor = subspace.CONTRAST_FLOOR * kept.trace() / WIDTH
    noticed = V.mT @ (kept + floor * torch.eye(WIDTH)) @ V
    assert torch.allclose(noticed, noticed[0, 0] * torch.eye(V.shape[1], dtype=V.dtype), atol=1e-6 * noticed[0, 0])
    read = (V.mT @ sigma @ V).diagonal() / noticed[0, 0]
    assert (read.diff() <= 1e-6 * read[0]).all()


def test_columns_of_the_shared_matrix_repeat_only_with_replacement():
    first = subspace.shared_columns(subspace.empty(8), 5, generator(0), "independent")
    second = subspace.shared_columns(subspace.empty(8), 5, generator(1), "independent")
    cosines = (first.mT @ second).abs()
    assert torch.allclose(cosines, cosines.round(), atol=1e-12)  # the same columns or orthogonal ones
    assert cosines.sum() >= 2  # 5 + 5 of 8: at least two are shared
    Q = subspace.occupied([first], 8)
    third = subspace.shared_columns(Q, 3, generator(1), "without-replacement")
    assert float((first.mT @ third).abs().max()) < 1e-12


def test_overlaps_are_relative_to_the_size_of_the_bases():
    B = torch.linalg.qr(torch.randn(WIDTH, 4, generator=generator(0))).Q
    table = subspace.overlaps(torch.cat([B[:, :1], 100 * B[:, :1], B[:, 1:3]], 1), [0, 1, 3, 3], 4)
    assert table.shape == (4, 4)
    assert float(table[0, 1]) == pytest.approx(1.0)
    assert float(table[0, 3]) < 1e-6
    assert float(table[0, 2]) == 0  # no basis in this layer


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_equal_spans_overlap_by_1_at_every_rank(rank):
    B, mixing = (torch.randn(size, rank, generator=generator(seed)) for size, seed in ((WIDTH * 8, 0), (rank, 1)))
    table = subspace.overlaps(torch.cat([B, B @ mixing], 1), [0] * rank + [1] * rank, 2)
    assert float(table[0, 1]) == pytest.approx(1.0, abs=1e-6)


def test_an_overlap_is_the_cosine_of_the_smallest_angle_between_spans():
    U = torch.linalg.qr(torch.randn(WIDTH, 6, generator=generator(0), dtype=torch.float64)).Q
    angle = torch.tensor(0.3, dtype=torch.float64)
    tilted = angle.cos() * U[:, 1] + angle.sin() * U[:, 4]
    first = U[:, :3] @ torch.randn(3, 3, generator=generator(1), dtype=torch.float64)
    second = torch.stack([tilted + U[:, 5], 3 * U[:, 5]], 1)
    table = subspace.overlaps(torch.cat([second, first], 1), [1, 1, 0, 0, 0], 2)
    assert float(table[0, 1]) == pytest.approx(float(angle.cos()), abs=1e-12)
    assert torch.equal(table, table.mT)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_overlaps_are_those_of_orthonormal_bases_of_any_ranks(ranks, seed):
    bases = [
        torch.randn(WIDTH, rank, generator=generator(seed + i), dtype=torch.float64) for i, rank in enumerate(ranks)
    ]
    owner = [i for i, rank in enumerate(ranks) for _ in range(rank)]
    known = torch.full((len(ranks), len(ranks)), 0.6, dtype=torch.float64)
    table = subspace.overlaps(torch.cat(bases, 1), owner, len(ranks))
    raised = subspace.overlaps(torch.cat(bases, 1), owner, len(ranks), known)
    for i, j in itertools.combinations(range(len(ranks)), 2):
        first, second = (torch.linalg.qr(bases[k]).Q for k in (i, j))
        expected = float(torch.linalg.matrix_norm(first.mT @ second, 2)) if ranks[i] and ranks[j] else 0.0
        assert float(table[i, j]) == pytest.approx(expected, abs=1e-9)
        assert float(raised[i, j]) == pytest.approx(max(expected, 0.6), abs=1e-9)


def test_what_lost_rank_does_not_count_as_a_direction():
    U = torch.linalg.qr(torch.randn(WIDTH, 4, generator=generator(0), dtype=torch.float64)).Q
    lost = torch.stack([U[:, 0], U[:, 0] + 1e-7 * U[:, 1], 0 * U[:, 0]], 1)
    table = subspace.overlaps(torch.cat([lost, U[:, 1:3]], 1), [0, 0, 0, 1, 1], 2)
    assert float(table[0, 1]) < 1e-7


def test_what_a_card_s_fast_products_left_of_occupied_directions_is_removed_at_the_end():
    Q = torch.linalg.qr(torch.randn(64, 12, generator=generator(0), dtype=torch.float64)).Q
    B = subspace.random_basis(Q, 4, generator(1)).float()
    assert torch.equal(subspace.reproject_if_needed(B, Q), B)
    rough = B + 2e-5 * Q[:, :4].float()  # what TF32 leaves
    assert float((Q.mT @ rough.double()).abs().max()) > 1e-5
    assert float((Q.mT @ subspace.reproject_if_needed(rough, Q).double()).abs().max()) < 1e-7


def test_a_later_basis_is_orthogonal_to_columns_that_are_all_but_parallel():
    """As imported ones may be: what sets them apart is small, and a direction of its own."""
    U = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    B = torch.stack([U[:, 0], U[:, 0] + 5e-5 * U[:, 1]], dim=1).float()
    Q = subspace.occupied([B], 12)
    later = subspace.project(U[:, 1:2] + U[:, 2:], Q)
    overlap = (B.double() / B.norm(dim=0)).mT @ (later / later.norm())
    assert float(overlap.abs().max()) < 1e-6
