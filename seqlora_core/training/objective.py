"""The denoising loss of one minibatch (eq. 2) as the objective `L(A, B)` of the bilevel iteration."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.dataset import EncodedConcept
from ..errors import TrainingDiverged, UserError
from ..model.adapters import Adapter, attach
from ..model.denoiser import Denoiser
from ..model.sd15 import receives_text
from .config import ResolvedConfig
from .distributed import ALONE, Processes
from .earlier_concepts import EarlierConcepts
from .minibatches import Minibatch, draw_minibatches

# float16 gradients below 6e-8 vanish; scaling the loss up keeps them, and is halved when it overflows.
FIRST_LOSS_SCALE = 2.0**12
_FACTOR_STEPS = "lr_coefficients and lr_basis"


class DenoisingObjective:
    """`L(A, B)` of the current minibatches, on a UNet with an adapter on each of `layers`.

    Args:
        layers: the adapted layers, by canonical name; A and B are lists in their order.
        dtype: precision of the passes, by its name in torch.
        ridge: eps of a term eps/2 (|A|^2 + |B|^2), our reading of the paper's regularization weight.
        penalty: a further term of (A, B), or None.
        earlier: the earlier concepts, which minibatches may leave out.
        processes: those that share every minibatch; gradients and losses are those of the whole one.

    Attributes:
        passes: forward-backward passes over a micro-batch so far.
        loss_scale: factor on the loss that keeps float16 gradients from vanishing; halved when they overflow.
        difference_step: relative step at which a central difference of the gradient is accurate.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        dtype: str = "float32",
        ridge: float = 0.0,
        penalty: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
        earlier: EarlierConcepts | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.denoiser = denoiser
        self._layers = layers
        self._adapters: dict[str, Adapter] = {}  # holds the factors only while a pass lasts
        self._minibatches: Sequence[Minibatch] = ()
        self._finite_passes: list[Tensor] = []  # one flag per gradient since `use`, not read yet
        self._ridge = ridge
        self._penalty = penalty
        self._earlier = earlier or EarlierConcepts()
        self._processes = processes
        self._own_rows: Tensor | None = None  # of the pass that runs
        self._dtype = getattr(torch, dtype)
        self.passes = 0
        self.loss_scale = FIRST_LOSS_SCALE if self._dtype == torch.float16 else 1.0
        self.difference_step = 1e-2 if self._dtype == torch.float32 else 1e-1

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While the block lasts, passes see the factors that they are given."""
        with attach(self._layers, self._adapters, scale=self._on_own_rows):
            yield

    def _on_own_rows(self, layer: str, down: Tensor) -> Tensor:
        """Scale what the adapter of a layer makes of each token (see `adapters.attach`)."""
        if self._own_rows is None or not receives_text(layer):
            return down
        return down * self._own_rows.to(down.dtype)[..., None]

    def use(self, minibatches: Sequence[Minibatch]) -> None:
        """Define L by these minibatches until the next call."""
        processes, self._finite_passes = self._processes, []
        self._minibatches = [minibatch.share(processes.rank, processes.count) for minibatch in minibatches]

    def loss(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """Return L(A, B) over all minibatches, with its graph; of this process's share, where several train."""
        self.passes += len(self._minibatches)
        with self._using(A, B):
            errors = []
            for minibatch in self._minibatches:
                with self._earlier.in_images(minibatch.with_earlier):
                    errors.append(self._error(minibatch))
            return sum(errors) + self._regularization(A, B)

    def gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Compute L, dL/dA and dL/dB, with one minibatch's graph in memory at a time.

        L stays on the device, and whether all is finite is known only to `read`.  In float16 it is looked at at once,
        because the loss scale may have to be lowered.

        Raises:
            TrainingDiverged: they are not finite (float16).
            UserError: they are not finite although A is 0, so that the base model alone is the cause (float16).
        """
        loss, gradients = self._finite(
            lambda: self._scaled_gradients(A, B), lambda: any(a.any() for a in A), _FACTOR_STEPS
        )
        return loss, gradients[: len(A)], gradients[len(A) :]

    def read(self, loss: Tensor | float, factors: Sequence[Tensor], moved: bool, step_sizes: str = _FACTOR_STEPS):
        """Wait for the device, once per step: read a loss, and whether everything since `use` is finite.

        Args:
            factors: what the step has changed.
            moved: whether steps were taken before this one, to which what is not finite may be due.
            step_sizes: the settings to lower then.

        Returns:
            The loss, and whether it and the factors are finite.

        Raises:
            TrainingDiverged, UserError: a gradient was not finite (see `gradients`).
        """
        flags = [*self._finite_passes, _all_finite(factors)]
        numbers = torch.stack([torch.as_tensor(loss, device=flags[0].device).float(), *(f.float() for f in flags)])
        value, *passes, changed = numbers.tolist()
        if not all(passes):
            raise self._divergence(moved or bool(passes[0]), step_sizes)
        return value, bool(changed) and math.isfinite(value)

    def word_gradient(
        self, vectors: Tensor, encode: Callable[[Sequence[str], Tensor], Tensor], moved: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute L of the model as it is, without factors, and its gradient by a learned word's vectors.

        Args:
            vectors: [k, w].
            encode: (b prompts, vectors) -> their embeddings [b, tokens, d], with a graph to the vectors.
            moved: whether steps were taken, to which a loss that is not finite may be due.

        Raises:
            TrainingDiverged, UserError: as in `gradients`.
        """

        def scaled() -> tuple[Tensor, list[Tensor]]:
            variable = vectors.detach().requires_grad_()
            with torch.enable_grad():
                return self._over_minibatches([variable], lambda minibatch: encode(minibatch.texts, variable))

        loss, (gradient,) = self._finite(scaled, lambda: moved, "lr_token")
        return loss, gradient

    def _finite(
        self, compute: Callable[[], tuple[Tensor, list[Tensor]]], moved: Callable[[], bool], step_sizes: str
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute a loss and its gradients, at a lower loss scale where they overflow.

        Args:
            moved: whether steps were taken, to which a loss that is not finite may be due.
            step_sizes: the settings to lower then.
        """
        while True:
            loss, gradients = compute()
            finite = _all_finite(gradients)
            if self._dtype != torch.float16:
                self._finite_passes.append(finite)
                return loss, gradients
            if finite:
                return loss, gradients
            if self.loss_scale <= 1:
                raise self._divergence(moved(), step_sizes)
            self.loss_scale /= 2

    def _divergence(self, moved: bool, step_sizes: str) -> Exception:
        if not moved:
            return base_is_not_finite(str(self._dtype).removeprefix("torch."))
        precision = "" if self._dtype == torch.float32 else ", or use dtype float32"
        return TrainingDiverged(f"The loss is no longer finite: lower {step_sizes}{precision}.")

    def _scaled_gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        # Copies, so that the caller's factors never gain a gradient.
        A, B = ([factor.detach().requires_grad_() for factor in factors] for factors in (A, B))
        factors = [*A, *B]
        with torch.enable_grad():
            regularization = self._regularization(A, B)
            totals = list(torch.autograd.grad(regularization, factors))
            loss = regularization.detach()
            # Gradient checkpointing uses the factors again in the backward pass, so they stay attached until its end.
            with self._using(A, B):
                error, parts = self._over_minibatches(factors)
        return loss + error, [total + part for total, part in zip(totals, parts, strict=True)]

    def _over_minibatches(
        self, variables: Sequence[Tensor], encode: Callable[[Minibatch], Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The error of all minibatches and its gradients by `variables`, with one graph in memory at a time.

        Args:
            encode: makes the text embeddings of a minibatch; None takes those that it has.
        """
        totals, total = [torch.zeros_like(variable) for variable in variables], variables[0].new_zeros(())
        for minibatch in self._minibatches:
            if encode is not None:
                minibatch = replace(minibatch, text=encode(minibatch))
            with self._earlier.in_images(minibatch.with_earlier):
                error = self._error(minibatch)
                # Without a graph, no prompt of the minibatch names the word that is learned.
                parts = torch.autograd.grad(error * self.loss_scale, variables) if error.requires_grad else ()
            for sum_of_parts, part in zip(totals, parts, strict=bool(parts)):
                sum_of_parts += part / self.loss_scale
            total = total + error.detach()
            self.passes += 1
        self._processes.sum([total, *totals])
        return total, totals

    @torch.no_grad()
    def predict_noise(
        self,
        A: Sequence[Tensor],
        B: Sequence[Tensor],
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        own_rows: Tensor | None = None,
    ) -> Tensor:
        """Predict noise with these factors, in float32 (shapes as in `Denoiser.predict_noise` and `Minibatch`)."""
        self._own_rows = own_rows
        with self._using(A, B):
            return self._predict(noisy, timesteps, text).float()

    def _predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        device = self.denoiser.device.type
        # Where there is no autocast (DirectML, as torch denies), half precision is the model's own.
        plain = self._dtype == torch.float32 or not (hasattr(torch, device) and torch.amp.is_autocast_available(device))
        with nullcontext() if plain else torch.autocast(device, self._dtype):
            return self.denoiser.predict_noise(noisy, timesteps, text)

    def _error(self, minibatch: Minibatch) -> Tensor:
        self._own_rows = minibatch.own_rows  # also for layers that gradient checkpointing runs again
        return minibatch.squared_error(self._predict(minibatch.noisy, minibatch.timesteps, minibatch.text))

    def _regularization(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        ridge = self._ridge / 2 * sum(factor.square().sum() for factor in (*A, *B))
        return ridge if self._penalty is None else ridge + self._penalty(A, B)

    @contextmanager
    def _using(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Iterator[None]:
        self._adapters.update(zip(self._layers, map(Adapter.from_factors, A, B), strict=True))
        try:
            yield
        finally:
            self._adapters.clear()


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all are finite, as a flag on the device."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def base_is_not_finite(dtype: str) -> UserError:
    """The error for a base model, with the bank's concepts, whose output is not finite before any step is taken."""
    advice = "its weights are damaged, so use another base model" if dtype == "float32" else "use dtype float32"
    return UserError(f"The base model gives NaN in {dtype}: {advice}.")


def check_base_is_finite(denoiser: Denoiser, data: EncodedConcept, config: ResolvedConfig) -> None:
    """Run the base model once on the first minibatch, before anything is measured on it.

    Raises:
        UserError: its output, or what it was given, is not finite.
    """
    for example in (*data.examples, *data.prior):
        if not all(part.isfinite().all() for part in (example.mean, example.prompts)):
            raise UserError(
                "The encoded images or captions hold NaN: load the VAE and the text encoder in float32, or use others."
            )
    objective = DenoisingObjective(denoiser, {}, config.dtype)
    minibatch = draw_minibatches(data, denoiser, config, 0)[0]
    noise = objective.predict_noise([], [], minibatch.noisy, minibatch.timesteps, minibatch.text)
    if not noise.isfinite().all():
        raise base_is_not_finite(config.dtype)


@torch.no_grad()
def heldout_loss(
    denoiser: Denoiser,
    data: EncodedConcept,
    config: ResolvedConfig,
    steps: int,
    between: Callable[[int], None] = lambda done: None,
) -> float:
    """Compute the mean denoising error of the UNet, with its attached adapters, over fixed minibatches of `data`.

    Args:
        steps: the number of minibatches.
        between: called before each minibatch with the number of those that are done; may raise.
    """
    losses = []
    for step in range(steps):
        between(step)
        for minibatch in draw_minibatches(data, denoiser, config, step):
            prediction = denoiser.predict_noise(minibatch.noisy, minibatch.timesteps, minibatch.text)
            losses.append(F.mse_loss(prediction.float(), minibatch.noise).item())
    return sum(losses) / len(losses)
