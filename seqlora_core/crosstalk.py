"""What a new concept would do to the pictures of earlier ones, as a term of the loss that needs none of their images.

(ours) The interference of a new concept on an earlier one is `A B^T x` (eq. 4 of the paper), x the inputs that a layer
reads while the earlier one is drawn.  `B_i^T B = 0` makes it vanish on span(B_i) only; the rest of x is what
Theorems 2 and 7 call exposed.  The bank knows the earlier concepts' adapters and words, so their x can be made anew:
the model samples a prompt of each, and per layer `Sigma = mean of x x^T` is kept.  The term is the expected energy of
the interference as a share of the energy of what the layer gives,

    weight * sum over layers of  tr(A B^T Sigma B A^T) / mean |y|^2,

which is quadratic in either factor and costs no forward pass.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .activations import capture_inputs, capture_output_energy, input_group
from .denoiser import Denoiser
from .denoising import named_generator
from .sampling import ddim

STEPS = 8  # forward passes of each earlier concept's picture


class Crosstalk:
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


@torch.no_grad()
def measure_crosstalk(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    prompts: Tensor,
    size: tuple[int, int],
    weight: float,
    seed: int,
    batch: int,
    between: Callable[[], None],
) -> Crosstalk:
    """Draws earlier concepts with whatever is attached to the UNet, and watches the layers.

    Args:
        prompts: [E, tokens, d], of the earlier concepts.
        size: height and width in latent pixels.
        batch: pictures at a time.
        between: called before each batch; may raise.
    """
    device = denoiser.device

    def draw() -> None:
        generator = named_generator(seed, "earlier")
        for texts in prompts.float().split(batch):
            between()
            text, noise = texts.to(device), torch.randn(len(texts), 4, *size, generator=generator).to(device)
            ddim(
                lambda x, t, text=text: denoiser.predict_noise(x, t, text).float(),
                denoiser.alphas_cumprod,
                noise,
                STEPS,
            )

    with capture_output_energy(layers) as energies:
        inputs = capture_inputs(layers, draw)
    groups = {input_group(name): inputs[name] for name in layers}
    covariances = {group: watched.covariance.to(device) for group, watched in groups.items()}
    return Crosstalk(
        [covariances[input_group(name)] for name in layers],
        [weight / max(energies[name].mean, torch.finfo(torch.float32).tiny) for name in layers],
    )
