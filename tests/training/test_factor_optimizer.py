"""The steps of a basis in coordinates that others notice alike."""

import pytest
import torch

from seqlora_core import subspace
from seqlora_core.training.bilevel import reusing_iteration
from seqlora_core.training.factor_optimizer import FactorOptimizer
from seqlora_core.training.interference_penalty import InterferencePenalty

WIDTH, OUT = 32, 8


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_gradient_step_along_directions_is_preconditioned_by_them():
    B, V, gradient = normal(WIDTH, 2, seed=0), normal(WIDTH, 5, seed=1), normal(WIDTH, 2, seed=2)
    optimizer = FactorOptimizer([B.clone()], "gradient", 0.1, clip=0, directions=[V])
    for _ in range(2):
        optimizer.step([gradient])
    assert torch.allclose(optimizer.parameters[0], B - 0.2 * V @ (V.mT @ gradient), atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "gradient"])
def test_unit_directions_are_the_plain_coordinates(kind):
    gradients = [normal(WIDTH, 2, seed=seed) for seed in range(5)]
    results = []
    for directions in (None, [torch.eye(WIDTH)]):
        optimizer = FactorOptimizer([normal(WIDTH, 2, seed=9)], kind, 0.1, 1.0, directions)
        for gradient in gradients:
            optimizer.step([gradient])
        results.append(optimizer.parameters[0])
    assert torch.allclose(*results, atol=1e-6)


class Layer:
    """A layer that is to give something new for inputs most of which other prompts have too.

    The noise stands for that of minibatches.
    """

    difference_step = 1e-2

    def __init__(self) -> None:
        shared = normal(3, WIDTH, seed=0) * 3
        self.x = normal(20, 3, seed=1) @ shared + 0.1 * normal(20, WIDTH, seed=2)
        others = normal(200, 3, seed=3) @ shared + 0.03 * normal(200, WIDTH, seed=4)
        self.kept = others.mT @ others / len(others)
        self.wanted = 0.5 * normal(1, OUT, seed=5).expand(20, OUT)
        self.term = InterferencePenalty([self.kept], [0.5])
        self.noise = torch.Generator().manual_seed(6)

    def loss(self, A, B) -> torch.Tensor:
        error = (self.x @ B[0] @ A[0].mT - self.wanted).square().sum(1).mean()
        return error + self.term(A, B)

    def gradients(self, A, B):
        A, B = ([factor.detach().requires_grad_() for factor in factors] for factors in (A, B))
        loss = self.loss(A, B)
        gradients = torch.autograd.grad(loss, [*A, *B])
        noisy = [g + 0.3 * g.norm() / g.numel() ** 0.5 * torch.randn(g.shape, generator=self.noise) for g in gradients]
        return loss.item(), noisy[:1], noisy[1:]


def test_a_concept_whose_words_are_like_others_is_learned_sooner_in_contrastive_coordinates():
    layer, Q = Layer(), subspace.empty(WIDTH).float()
    directions = subspace.contrastive_directions(Q.double(), layer.x.mT @ layer.x / len(layer.x), layer.kept)
    start = subspace.contrastive_basis(Q.double(), 2, directions).float()

    def learned(beta: float, along) -> float:
        lower = FactorOptimizer([torch.zeros(OUT, 2)], "adam", 1e-2, 0)
        upper = FactorOptimizer([start.clone()], "adam", beta, 0, along)
        for _ in range(100):
            reusing_iteration(layer, lower, upper, [Q])
        return layer.loss(lower.parameters, upper.parameters).item()

    plain, contrastive = (
        min(learned(beta, along) for beta in (1e-3, 3e-3, 1e-2, 3e-2, 0.1)) for along in (None, [directions.float()])
    )
    assert contrastive < 0.5 * plain
