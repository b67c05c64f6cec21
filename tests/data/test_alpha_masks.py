"""Alpha channels as weights of the loss: read, scaled, cropped and mirrored as their images are."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from training_runs import resolved

from seqlora_core.data.dataset import EncodedConcept
from seqlora_core.data.encoding import encode_concept, source_fingerprint
from seqlora_core.data.images import decode_with_alpha, read_image
from seqlora_core.data.reference_folder import Reference, read_folder
from seqlora_core.errors import UserError
from seqlora_core.training.minibatches import draw_minibatches

ORIENTATION = 0x0112


def cut_out(size=(96, 64), box=(0, 0, 24, 64)) -> Image.Image:
    """A black box on nothing."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), box)
    return image


@pytest.fixture
def base():
    """Latents are the brightness of 8 x 8 px, from -1 to 1: black is what counts, and transparent areas are white."""

    def encode_image(pixels):
        mean = F.avg_pool2d(pixels.mean(1, keepdim=True), 8).expand(-1, 4, -1, -1)
        return mean, torch.zeros_like(mean)

    return SimpleNamespace(
        vae_scale_factor=8,
        size_multiple=16,
        encode_image=encode_image,
        text_encoder=SimpleNamespace(encode_all=lambda prompts, words: torch.zeros(len(prompts), 7, 32)),
        encoding_fingerprint=lambda: "base",
    )


def encode(base, folder, alpha=True, **options) -> EncodedConcept:
    return encode_concept(base, read_folder(folder, "sksa dog", alpha=alpha), 64, **options)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crop": "random", "flip": True}, {"buckets": True}], ids=str)
def test_the_mask_covers_what_is_opaque_in_the_latents(tmp_path, base, options):
    cut_out().save(tmp_path / "a.png")
    examples = encode(base, tmp_path, **options).examples
    assert len(examples) == 1 + ("flip" in options)
    for example in examples:
        assert example.mask.shape == (1, *example.mean.shape[1:])
        torch.testing.assert_close(example.mean[0], 1 - 2 * example.mask[0], atol=0.02, rtol=0)
        assert 0 < example.mask.mean() < 0.5
    if "flip" in options:
        assert torch.equal(examples[1].mask, examples[0].mask.flip(2))


def test_a_random_crop_cuts_the_mask_as_it_cuts_the_image(tmp_path, base, denoiser):
    cut_out((160, 64), (50, 0, 110, 40)).save(tmp_path / "a.png")
    data, places = encode(base, tmp_path, crop="random"), set()
    for step in range(12):
        (minibatch,) = draw_minibatches(data, denoiser, resolved(), step)
        signal = denoiser.alphas_cumprod.cpu()[minibatch.timesteps.cpu()]
        latents = (minibatch.noisy.cpu() - (1 - signal).sqrt() * minibatch.noise.cpu()) / signal.sqrt()
        if signal > 0.3:  # otherwise rounding hides the image
            assert torch.equal(minibatch.mask[0, 0].cpu() > 0.5, latents[0, 0] < 0)
        places.add(tuple(minibatch.mask.nonzero()[0].tolist()))
    assert len(places) > 2


def test_without_the_setting_transparency_is_white_and_nothing_is_masked(tmp_path, base):
    cut_out().save(tmp_path / "a.png")
    (example,) = encode(base, tmp_path, alpha=False).examples
    assert example.mask is None
    (masked,) = encode(base, tmp_path).examples
    assert torch.equal(example.mean, masked.mean)


def test_partial_transparency_weighs_in_part(tmp_path, base):
    Image.new("RGBA", (64, 64), (0, 0, 0, 51)).save(tmp_path / "a.png")
    (example,) = encode(base, tmp_path).examples
    torch.testing.assert_close(example.mask, torch.full((1, 8, 8), 0.2))


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_every_kind_of_transparency_is_read(tmp_path, mode):
    image = cut_out()
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "a.png")
    _, alpha, _ = decode_with_alpha(tmp_path / "a.png")
    assert (alpha.getpixel((0, 0)), alpha.getpixel((90, 0))) == (255, 0)


def test_the_alpha_channel_is_turned_with_the_image(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    cut_out().save(tmp_path / "a.png", exif=exif)
    image, alpha, _ = decode_with_alpha(tmp_path / "a.png")
    assert image.size == alpha.size == (64, 96) == read_image(tmp_path / "a.png").size
    assert (alpha.getpixel((32, 0)), alpha.getpixel((32, 95))) == (255, 0)
    assert image.getpixel((32, 0)) == (0, 0, 0)


def test_images_without_alpha_count_everywhere_and_that_is_reported(tmp_path, base):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert any("No image has an alpha channel" in note for note in read_folder(tmp_path, "x", alpha=True).notes)
    assert encode(base, tmp_path).examples[0].mask is None
    cut_out().save(tmp_path / "b.png")
    found = read_folder(tmp_path, "x", alpha=True)
    assert [reference.alpha is None for reference in found] == [True, False]
    assert not [note for note in found.notes if "alpha" in note]


@pytest.mark.parametrize(("crop", "message"), [("center", "in its middle square"), ("random", None)])
def test_an_image_of_which_nothing_counts_is_refused_before_encoding(tmp_path, base, crop, message):
    cut_out((200, 64), (0, 0, 20, 64)).save(tmp_path / "edge.png")
    base.encode_image = base.encode_image if message is None else lambda pixels: pytest.fail("it was encoded")
    if message is None:
        assert encode(base, tmp_path, crop=crop).examples[0].mask.any()
    else:
        with pytest.raises(UserError, match=f"edge.*{message}"):
            encode(base, tmp_path, crop=crop)


def test_another_alpha_channel_is_other_data(base):
    image = Image.new("RGB", (64, 64))
    masks = [None, Image.new("L", (64, 64), 255), Image.new("L", (64, 64), 9)]
    hashes = [source_fingerprint(base, [Reference(image, ("x",), "a", alpha=mask)]) for mask in masks]
    assert len(set(hashes)) == 3
