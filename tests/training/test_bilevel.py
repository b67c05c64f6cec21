"""The hypergradients against numerical derivatives and each other, and the descent that Theorem 1 promises."""

import dataclasses
import functools
import itertools

import pytest
import tiny_base
import torch
from training_runs import random_concept, resolved

from seqlora_core import subspace
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.model.sd15 import find_layers, sd15_alphas_cumprod
from seqlora_core.training.bilevel import bilevel_iteration, reusing_iteration
from seqlora_core.training.factor_optimizer import FactorOptimizer
from seqlora_core.training.hypergradient import HYPERGRADIENTS, exact, finite_difference, lookahead
from seqlora_core.training.minibatches import draw_minibatches
from seqlora_core.training.objective import DenoisingObjective

RANK = 2


class Problem:
    """A fixed minibatch of the denoising loss on a UNet, with factors A and B somewhere off zero."""

    def __init__(self, unet, dtype: torch.dtype, size: int = 8, ridge: float = 1e-3) -> None:
        self.unet = unet.to(dtype)
        self.denoiser = DiffusersDenoiser(self.unet, sd15_alphas_cumprod())
        self.layers = find_layers(self.unet)
        config = resolved(rank=RANK, batch_size=2)
        self.objective = DenoisingObjective(self.denoiser, self.layers, config.dtype, ridge)
        (minibatch,) = draw_minibatches(random_concept(0, size=size), self.denoiser, config, 0)
        floats = {
            name: value.to(dtype)
            for name, value in vars(minibatch).items()
            if torch.is_tensor(value) and value.is_floating_point()
        }
        self.minibatches = [dataclasses.replace(minibatch, **floats)]
        self.objective.use(self.minibatches)
        generator = torch.Generator().manual_seed(1)
        self.A = [self._normal(layer.out_features, generator, dtype) for layer in self.layers.values()]
        self.B = [self._normal(layer.in_features, generator, dtype) for layer in self.layers.values()]

    @staticmethod
    def _normal(width: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(width, RANK, generator=generator, dtype=torch.float64).to(dtype) / width**0.5

    @torch.no_grad()
    def predict_noise(self) -> torch.Tensor:
        """What the UNet makes of the minibatch, with whatever is attached to it."""
        (batch,) = self.minibatches
        return self.denoiser.predict_noise(batch.noisy, batch.timesteps, batch.text)

    def attach(self):
        return self.objective.attached()

    def step_for(self, share: float) -> float:
        """The lower step size whose first step is `share` of |A| long."""
        _, g, _ = self.objective.gradients(self.A, self.B)
        return share * norm(self.A) / norm(g)

    @functools.cache  # noqa: B019 - as long as the module's fixture
    def exact(self, share: float, inner_steps: int = 1):
        """The exact hypergradient after lower steps of that length."""
        alpha = self.step_for(share)
        return exact(self.objective, self.A, self.B, lambda g: [alpha] * len(g), inner_steps)[1]


def norm(tensors) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def cosine(a, b) -> float:
    return float(torch.cosine_similarity(*(torch.cat([t.flatten() for t in x]) for x in (a, b)), dim=0))


def error(a, b) -> float:
    return norm([x - y for x, y in zip(a, b, strict=True)]) / norm(b)


@pytest.fixture(scope="module")
def double_problem() -> Problem:
    return Problem(tiny_base.make_unet((32, 64), 1, 32), torch.float64)


@pytest.fixture(scope="module")
def sd15_problem() -> Problem:
    """SD1.5's topology, 128 adapted layers, float32; adapters a few percent of the weights, as trained LoRAs are.

    Latents of 32 pixels: with less, the deepest level has so few that group norm over them is all but discontinuous.
    """
    problem = Problem(tiny_base.make_unet((32, 64, 128, 128), text_width=32), torch.float32, size=32)
    assert len(problem.layers) == 128
    problem.A = [0.1 * a for a in problem.A]
    return problem


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_exact_hypergradient_is_the_numerical_derivative_of_phi(double_problem, inner_steps):
    problem, h = double_problem, 1e-5
    with problem.attach():
        alpha = problem.step_for(0.3)

        def phi(B):
            A = problem.A
            for _ in range(inner_steps):
                _, g, _ = problem.objective.gradients(A, B)
                A = [a - alpha * g_a for a, g_a in zip(A, g, strict=True)]
            return float(problem.objective.gradients(A, B)[0])

        _, gradient = exact(problem.objective, problem.A, problem.B, lambda g: [alpha] * len(g), inner_steps)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            direction = [torch.randn(b.shape, generator=generator, dtype=b.dtype) for b in problem.B]
            ahead = phi([b + h * d for b, d in zip(problem.B, direction, strict=True)])
            behind = phi([b - h * d for b, d in zip(problem.B, direction, strict=True)])
            expected = (ahead - behind) / (2 * h)
            along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
            assert along == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("share", "allowed"), [(0.003, 8e-5), (0.01, 8e-4), (0.03, 4e-3), (0.1, 0.018), (0.3, 0.055)])
def test_lookahead_agrees_with_exact_on_the_sd15_topology(sd15_problem, share, allowed):
    """Within the relative errors that the method's description gives for these lower steps."""
    problem = sd15_problem
    with problem.attach():
        alpha, reference = problem.step_for(share), problem.exact(share)
        _, gradient = lookahead(problem.objective, problem.A, problem.B, lambda g: [alpha] * len(g), 1)
    assert error(gradient, reference) <= allowed
    assert cosine(gradient, reference) >= 0.998


@pytest.mark.parametrize(("share", "inner_steps", "allowed"), [(0.01, 1, 4e-5), (0.1, 1, 4e-5), (0.1, 2, 0.02)])
def test_finite_difference_agrees_with_exact(sd15_problem, share, inner_steps, allowed):
    problem = sd15_problem
    with problem.attach():
        alpha, reference = problem.step_for(share), problem.exact(share, inner_steps)
        _, gradient = finite_difference(
            problem.objective, problem.A, problem.B, lambda g: [alpha] * len(g), inner_steps
        )
    assert error(gradient, reference) <= allowed


def test_a_preconditioned_lower_step_is_followed_too(sd15_problem):
    problem = sd15_problem
    with problem.attach():
        _, g, _ = problem.objective.gradients(problem.A, problem.B)
        D = [1 / (g_a.abs().sqrt() + g_a.abs().max()) for g_a in g]
        scale = 0.02 * norm(problem.A) / norm([d * g_a for d, g_a in zip(D, g, strict=True)])
        D = [scale * d for d in D]
        _, reference = exact(problem.objective, problem.A, problem.B, lambda g: D, 1)
        gradients = [
            f(problem.objective, problem.A, problem.B, lambda g: D, 1)[1] for f in (lookahead, finite_difference)
        ]
    assert all(cosine(gradient, reference) >= 0.998 for gradient in gradients)


def test_finite_difference_works_where_training_starts_with_a_at_zero(sd15_problem):
    problem = sd15_problem
    zero = [torch.zeros_like(a) for a in problem.A]
    with problem.attach():
        _, g, _ = problem.objective.gradients(zero, problem.B)
        alpha = 0.02 * norm(problem.A) / norm(g)
        _, reference = exact(problem.objective, zero, problem.B, lambda g: [alpha] * len(g), 1)
        _, gradient = finite_difference(problem.objective, zero, problem.B, lambda g: [alpha] * len(g), 1)
    assert cosine(gradient, reference) >= 0.998


@pytest.mark.parametrize("name", list(HYPERGRADIENTS))
def test_hypergradients_leave_the_factors_bit_for_bit(double_problem, name):
    problem = double_problem
    before = [t.clone() for t in (*problem.A, *problem.B)]
    with problem.attach():
        HYPERGRADIENTS[name](problem.objective, problem.A, problem.B, lambda g: [0.1] * len(g), 2)
        attached = problem.predict_noise()
    assert all(torch.equal(old, new) for old, new in zip(before, (*problem.A, *problem.B), strict=True))
    assert torch.equal(attached, problem.predict_noise())  # nothing of the factors stays on the UNet


ITERATIONS = {
    name: lambda *state, name=name: bilevel_iteration(*state, HYPERGRADIENTS[name]) for name in HYPERGRADIENTS
} | {"kept": reusing_iteration}


@pytest.mark.parametrize("name", list(ITERATIONS))
def test_the_loss_falls_at_every_iteration_on_a_fixed_minibatch(double_problem, name):
    """Theorem 1: with small steps the objective is monotone, and the constraint holds all the way."""
    problem = double_problem
    generator = torch.Generator().manual_seed(5)
    Q = [torch.linalg.qr(torch.randn(b.shape[0], 6, generator=generator, dtype=b.dtype)).Q for b in problem.B]
    A = [a.clone() for a in problem.A]
    B = [subspace.project(b, q) for b, q in zip(problem.B, Q, strict=True)]
    lower, upper = (FactorOptimizer(factor, "gradient", 1.0, clip=0) for factor in (A, B))
    losses = []
    with problem.attach():
        for _ in range(12):
            losses.append(ITERATIONS[name](problem.objective, lower, upper, Q))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.995 * losses[0]
    for b, q in zip(upper.parameters, Q, strict=True):
        assert float((q.mT @ b).abs().max()) < 1e-12


def test_kept_lower_steps_move_b_as_the_algorithm_does_and_a_twice_along_its_gradient(double_problem):
    problem, step = double_problem, 0.2
    Q = [torch.zeros(b.shape[0], 0, dtype=b.dtype) for b in problem.B]

    def iterate(name: str):
        factors = [[tensor.clone() for tensor in tensors] for tensors in (problem.A, problem.B)]
        ITERATIONS[name](problem.objective, *(FactorOptimizer(f, "gradient", step, clip=0) for f in factors), Q)
        return factors

    def gradient(A):
        A = [a.clone().requires_grad_() for a in A]
        return torch.autograd.grad(problem.objective.loss(A, problem.B), A)

    with problem.attach():
        (_, B), (kept_A, kept_B) = (iterate(name) for name in ("lookahead", "kept"))
        A = problem.A
        for _ in range(2):
            A = [a - step * g for a, g in zip(A, gradient(A), strict=True)]
    assert error(kept_B, B) < 1e-12
    assert error(kept_A, A) < 1e-12


@pytest.mark.parametrize("name", ["lookahead", "finite-difference"])
def test_under_bfloat16_the_hypergradient_stays_close_to_the_exact_one_in_float32(sd15_problem, name):
    problem = sd15_problem
    half = DenoisingObjective(problem.denoiser, problem.layers, "bfloat16", ridge=1e-3)
    half.use(problem.minibatches)
    with problem.attach(), half.attached():
        alpha, reference = problem.step_for(0.1), problem.exact(0.1)
        _, gradient = HYPERGRADIENTS[name](half, problem.A, problem.B, lambda g: [alpha] * len(g), 1)
    assert error(gradient, reference) <= 7e-3
    assert all(g.dtype == torch.float32 for g in gradient)
