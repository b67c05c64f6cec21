"""A loss term that penalizes a new concept's effect on other prompts, without their images.

(ours) The interference of a new concept with an earlier one is `A B^T x` (eq. 4 of the paper), with x the inputs that a
layer receives while the earlier one is sampled.  `B_i^T B = 0` makes it vanish on span(B_i) only; the rest of x is what
Theorems 2 and 7 call exposed.  The bank holds the adapters and words of the earlier concepts, so their x can be
reproduced: the model samples one prompt per concept, and `Sigma = mean of x x^T` is stored per layer.  Further prompts
stand for concepts to come (placeholder subjects) and for everything else (common subjects).  The empty prompt is among
them too: otherwise the first concepts would change what all images have in common, and later concepts would depend on
that change.  The term is the expected energy of the interference relative to the energy of the layer's outputs y,

    weight * number of prompts * sum over layers of  tr(A B^T Sigma B A^T) / mean |y|^2,

which is quadratic in either factor and costs no forward pass.  Every prompt has the same weight, however many there
are; a mean over the prompts would protect each concept less as the bank grows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.activations import TEXT_GROUP, capture_inputs, capture_output_energy, input_group
from ..model.denoiser import Denoiser
from ..model.sampling import ddim
from ..randomness import named_generator
from .distributed import Processes

# Forward passes per image.  With 4, the first four directions of a layer overlap with those of 8 by 0.97 (the median on
# the small base); with other noise, those of 8 overlap by 0.88.
STEPS = 4
# If only layers of the text are adapted: latents (latent px) that a UNet can halve three times, and as many per batch
# as have half the area of a 512 px image.
SMALL, MANY = (8, 8), 32
# Else, at least so many per batch: they take less memory than one image that is trained on, since nothing is kept for a
# backward pass, and the batch takes about half the time.
TOGETHER = 4


class InterferencePenalty:
    """The penalty for one model with the concepts that it holds so far.

    Args:
        covariances: Sigma [n, n] per layer, on the device of the layer's factors.
        shares: weight over mean |y|^2 per layer.
    """

    def __init__(self, covariances: Sequence[Tensor], shares: Sequence[float]) -> None:
        self._covariances, self._shares = list(covariances), list(shares)

    def take_from_the_first(self, processes: Processes) -> None:
        """Have what the first of some processes has measured."""
        shares = torch.tensor(self._shares, dtype=torch.float64)
        processes.take_from_the_first([*self._covariances, shares])
        self._shares = shares.tolist()

    def __call__(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """Compute the penalty at `A [m, r]`, `B [n, r]`, one per layer: a scalar with its graph."""
        terms = zip(A, B, self._covariances, self._shares, strict=True)
        return sum(share * ((a.mT @ a) * (b.mT @ sigma @ b)).sum() for a, b, sigma, share in terms)


class ProtectedInputs(NamedTuple):
    """What layers receive and output while the protected prompts are sampled.

    Attributes:
        covariances: Sigma [n, n], by canonical layer name.
        energies: mean |y|^2, by canonical layer name.
        prompts: the number of protected prompts.
    """

    covariances: Mapping[str, Tensor]
    energies: Mapping[str, float]
    prompts: int

    def penalty(self, weight: float) -> InterferencePenalty:
        """Return the penalty for the layers in their order, with this weight per prompt."""
        tiny = torch.finfo(torch.float32).tiny
        shares = [weight * self.prompts / max(energy, tiny) for energy in self.energies.values()]
        return InterferencePenalty(self.covariances.values(), shares)


@torch.no_grad()
def watch_protected(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    prompts: Tensor,
    size: tuple[int, int],
    seed: int,
    batch: int,
    between: Callable[[int], None],
) -> ProtectedInputs:
    """Sample the protected prompts with the UNet and its attached adapters, and capture inputs and outputs of layers.

    Args:
        layers: by canonical name.
        prompts: [K, tokens, d] text embeddings.
        size: height and width in latent px, if any of the layers receives image features.
        seed: of the noise.
        batch: images per batch of the training run, in the same case; here they are at least `TOGETHER`.
        between: called before each batch with the number of prompts that are done; may raise to cancel.
    """
    device, channels = denoiser.device, denoiser.architecture.latent_channels
    groups = {name: input_group(name) for name in layers}
    # Keys and values of the text receive the same in every pass and at every size, so the cheapest pass is enough.
    text_only = set(groups.values()) == {TEXT_GROUP}
    steps, size, batch = (1, SMALL, MANY) if text_only else (STEPS, size, max(batch, TOGETHER))

    def sample() -> None:
        generator = named_generator(seed, "earlier")
        for index, texts in enumerate(prompts.float().split(batch)):
            between(index * batch)
            text, noise = texts.to(device), torch.randn(len(texts), channels, *size, generator=generator).to(device)
            ddim(
                lambda x, t, text=text: denoiser.predict_noise(x, t, text).float(),
                denoiser.alphas_cumprod,
                noise,
                steps,
            )

    with capture_output_energy(layers) as energies:
        inputs = capture_inputs(layers, sample)
    shared = {groups[name]: captured.covariance.to(device) for name, captured in inputs.items()}
    covariances = {name: shared[groups[name]] for name in layers}
    return ProtectedInputs(covariances, {name: energies[name].mean for name in layers}, len(prompts))
