"""Images in half precision, and images that are not finite."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.base import load_base
from seqlora_core.model.sampling import SamplingSettings, generate


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_vae_that_overflows_in_half_precision_draws_the_picture_of_full_precision(base_folder, scheduler):
    base = load_base(str(base_folder), "cpu")
    base.pipeline.scheduler = scheduler.from_config(base.pipeline.scheduler.config)
    with torch.no_grad():
        base.pipeline.vae.decoder.conv_in.weight *= 1e6  # what follows is normalized
    whole, half = (_brightness(base, dtype) for dtype in (torch.float32, torch.float16))
    assert whole.std() > 5  # not one colour, such as black
    assert (whole - half).abs().mean() < 2


def _brightness(base, dtype: torch.dtype) -> torch.Tensor:
    """The values 0..255 of a picture with the UNet in that precision."""
    base.pipeline.unet.to(dtype)
    layer, precisions = base.pipeline.unet.mid_block.resnets[0].conv1, set()
    watching = layer.register_forward_hook(lambda layer, inputs, output: precisions.add(output.dtype))
    (picture,) = generate(base, "a dog", settings=SamplingSettings(2, 64))
    watching.remove()
    assert precisions == {dtype}
    return torch.tensor(list(picture.tobytes())).float()


def test_a_half_precision_unet_is_as_it_was_after_drawing(base_folder):
    base = load_base(str(base_folder), "cpu", "bfloat16")
    generate(base, "a dog", settings=SamplingSettings(1, 64))
    unet = base.pipeline.unet
    assert unet.forward.__func__ is type(unet).forward
    assert not unet.conv_out._forward_hooks


@pytest.mark.parametrize("broken", ["adapters", "vae"])
def test_an_image_that_is_not_finite_is_never_returned(base_folder, broken):
    base = load_base(str(base_folder), "cpu")
    adapters = None
    if broken == "adapters":
        adapters = {
            name: Adapter(torch.full((shape.out, 1), 1e30), torch.full((1, shape.width), 1e30))
            for name, shape in base.layers.items()
        }
    else:
        base.pipeline.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"The image is not finite in float32: .*lower the guidance"):
        generate(base, "a dog", adapters, SamplingSettings(steps=2, size=64))
