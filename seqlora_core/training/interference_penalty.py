"""What a new concept would do to other pictures, as a term of the loss that needs none of their images.

(ours) The interference of a new concept on an earlier one is `A B^T x` (eq. 4 of the paper), x the inputs that a layer
reads while the earlier one is drawn.  `B_i^T B = 0` makes it vanish on span(B_i) only; the rest of x is what
Theorems 2 and 7 call exposed.  The bank knows the earlier concepts' adapters and words, so their x can be made anew:
the model samples a prompt of each, and per layer `Sigma = mean of x x^T` is kept.  Prompts of invented subjects are
among them, for what later concepts read, of ordinary ones, for all else, and the empty prompt, or the first concepts
would change what all pictures have in common, and later ones come to lean on that.  The term is the expected energy of
the interference as a share of the energy of what the layer gives,

    weight * number of prompts * sum over layers of  tr(A B^T Sigma B A^T) / mean |y|^2,

which is quadratic in either factor and costs no forward pass.  So every prompt has the same weight, however many there
are; a mean over them would protect each concept less as the bank grows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.activations import TEXT_GROUP, capture_inputs, capture_output_energy, input_group
from ..model.denoiser import Denoiser
from ..model.sampling import ddim
from ..randomness import named_generator

STEPS = 8  # forward passes of a picture
# Where texts alone matter: latents that a UNet which halves them three times still takes, and so many of them at a time
# that they are half a picture of 512 px.
SMALL, MANY = (8, 8), 32


class InterferencePenalty:
    """The term for one model and the concepts that it holds so far.

    Args:
        covariances: Sigma [n, n] of every layer, on the device of its factors.
        shares: weight over mean |y|^2, one a layer.
    """

    def __init__(self, covariances: Sequence[Tensor], shares: Sequence[float]) -> None:
        self._covariances, self._shares = list(covariances), list(shares)

    def __call__(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """The term at `A [m, r]`, `B [n, r]`, one a layer: a scalar with its graph."""
        terms = zip(A, B, self._covariances, self._shares, strict=True)
        return sum(share * ((a.mT @ a) * (b.mT @ sigma @ b)).sum() for a, b, sigma, share in terms)


class ProtectedInputs(NamedTuple):
    """What layers read and give while the prompts to keep are drawn; both by canonical name."""

    covariances: Mapping[str, Tensor]  # Sigma [n, n]
    energies: Mapping[str, float]  # mean |y|^2
    prompts: int

    def crosstalk(self, weight: float) -> InterferencePenalty:
        """The term for the layers in their order; `weight` is that of a prompt."""
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
    between: Callable[[], None],
) -> ProtectedInputs:
    """Draws the prompts to keep with whatever is attach to the UNet, and watches the layers.

    Args:
        prompts: [K, tokens, d].
        size: height and width in latent pixels, where layers read pictures.
        batch: pictures at a time, there.
        between: called before each batch; may raise.
    """
    device, channels = denoiser.device, denoiser.architecture.latent_channels
    groups = {name: input_group(name) for name in layers}
    # Keys and values of the text read the same in every pass and at every size, so that the cheapest pass shows all.
    texts_alone = set(groups.values()) == {TEXT_GROUP}
    steps, size, batch = (1, SMALL, MANY) if texts_alone else (STEPS, size, batch)

    def draw() -> None:
        generator = named_generator(seed, "earlier")
        for texts in prompts.float().split(batch):
            between()
            text, noise = texts.to(device), torch.randn(len(texts), channels, *size, generator=generator).to(device)
            ddim(
                lambda x, t, text=text: denoiser.predict_noise(x, t, text).float(),
                denoiser.alphas_cumprod,
                noise,
                steps,
            )

    with capture_output_energy(layers) as energies:
        inputs = capture_inputs(layers, draw)
    shared = {groups[name]: watched.covariance.to(device) for name, watched in inputs.items()}
    covariances = {name: shared[groups[name]] for name in layers}
    return ProtectedInputs(covariances, {name: energies[name].mean for name in layers}, len(prompts))
