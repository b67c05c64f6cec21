"""The denoising loss of one minibatch (eq. 2) as the objective `L(A, B)` of the bilevel iteration."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import EncodedConcept
from ..errors import TrainingDiverged
from ..model.adapters import Adapter
from ..model.denoiser import Denoiser
from .config import TrainingConfig
from .minibatches import Minibatch, draw_minibatches

# float16 gradients below 6e-8 vanish; scaling the loss up keeps them, and is halved when it overflows.
FIRST_LOSS_SCALE = 2.0**12


class DenoisingObjective:
    """`L(A, B)` of the current minibatches, on a UNet with `adapters` attached (see `adapters.attach`).

    Args:
        adapters: the mapping that the attach hooks look up; holds the factors during a pass only.
        dtype: precision of the passes, by its name in torch.
        ridge: eps of a term eps/2 (|A|^2 + |B|^2), our reading of the paper's regularization weight.
        crosstalk: a further term of (A, B), or None.
        show: called with `seen` of every minibatch before its pass, and with None after the last.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        adapters: dict[str, Adapter],
        names: Sequence[str],
        dtype: str,
        ridge: float = 0.0,
        crosstalk: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
        show: Callable[[Tensor | None], None] = lambda seen: None,
    ) -> None:
        self.denoiser = denoiser
        self.minibatches: list[Minibatch] = []
        self.passes = 0  # forward-backward passes over a micro-batch so far
        self._adapters = adapters
        self._names = list(names)
        self._ridge = ridge
        self._crosstalk = crosstalk
        self._show = show
        self._dtype = getattr(torch, dtype)
        self.loss_scale = FIRST_LOSS_SCALE if self._dtype == torch.float16 else 1.0
        self.difference_step = 1e-2 if self._dtype == torch.float32 else 1e-1

    def loss(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """Return L(A, B) over all minibatches, with its graph."""
        self.passes += len(self.minibatches)
        with self._using(A, B):
            return sum(self._errors(minibatch) for minibatch in self.minibatches) + self._regularization(A, B)

    def gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[float, list[Tensor], list[Tensor]]:
        """Compute L, dL/dA and dL/dB, with one minibatch's graph in memory at a time.

        Raises:
            TrainingDiverged: they are not finite.
        """
        while True:
            loss, gradients = self._scaled_gradients(A, B)
            finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
            if finite:
                return loss, gradients[: len(A)], gradients[len(A) :]
            if self.loss_scale <= 1:
                raise TrainingDiverged("The loss is no longer finite: lower the step sizes alpha and beta.")
            self.loss_scale /= 2

    def _scaled_gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        # Copies, so that the caller's factors never gain a gradient.
        A, B = ([factor.detach().requires_grad_() for factor in factors] for factors in (A, B))
        factors = [*A, *B]
        with torch.enable_grad():
            regularization = self._regularization(A, B)
            totals = list(torch.autograd.grad(regularization, factors))
            loss = float(regularization.detach())
            # Gradient checkpointing uses the factors again in the backward pass, so they stay attached until its end.
            with self._using(A, B):
                for minibatch in self.minibatches:
                    error = self._errors(minibatch)
                    for total, part in zip(totals, torch.autograd.grad(error * self.loss_scale, factors), strict=True):
                        total += part / self.loss_scale
                    loss += float(error.detach())
                    self.passes += 1
        return loss, totals

    @torch.no_grad()
    def predict_noise(
        self, A: Sequence[Tensor], B: Sequence[Tensor], noisy: Tensor, timesteps: Tensor, text: Tensor
    ) -> Tensor:
        """Predict noise with these factors, in float32 (shapes as in `Denoiser.predict_noise`)."""
        with self._using(A, B):
            return self._predict(noisy, timesteps, text).float()

    def _predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        device = self.denoiser.device.type
        # Where there is no autocast (DirectML, as torch denies), half precision is the model's own.
        plain = self._dtype == torch.float32 or not (hasattr(torch, device) and torch.amp.is_autocast_available(device))
        with nullcontext() if plain else torch.autocast(device, self._dtype):
            return self.denoiser.predict_noise(noisy, timesteps, text)

    def _errors(self, minibatch: Minibatch) -> Tensor:
        self._show(minibatch.seen)
        return minibatch.squared_error(self._predict(minibatch.noisy, minibatch.timesteps, minibatch.text))

    def _regularization(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        ridge = self._ridge / 2 * sum(factor.square().sum() for factor in (*A, *B))
        return ridge if self._crosstalk is None else ridge + self._crosstalk(A, B)

    @contextmanager
    def _using(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Iterator[None]:
        self._adapters.update(zip(self._names, map(Adapter.from_factors, A, B), strict=True))
        try:
            yield
        finally:
            self._show(None)
            for name in self._names:
                self._adapters.pop(name, None)


@torch.no_grad()
def heldout_loss(
    denoiser: Denoiser,
    data: EncodedConcept,
    config: TrainingConfig,
    steps: int,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Compute the mean denoising error of the UNet, with its attached adapters, over fixed minibatches of `data`.

    Args:
        steps: the number of minibatches.
        between: called before each minibatch; may raise.
    """
    losses = []
    for step in range(steps):
        between()
        for minibatch in draw_minibatches(data, denoiser, config, step):
            prediction = denoiser.predict_noise(minibatch.noisy, minibatch.timesteps, minibatch.text)
            losses.append(F.mse_loss(prediction.float(), minibatch.noise).item())
    return sum(losses) / len(losses)
