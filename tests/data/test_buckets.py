"""Aspect-ratio buckets: sizes near the image's ratio, and minibatches of one size."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_runs import random_concept, resolved

from seqlora_core.data.buckets import bucket_size, bucket_sizes, fit_to_bucket
from seqlora_core.data.dataset import EncodedConcept
from seqlora_core.errors import UserError
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.epochs import pick_examples
from seqlora_core.training.minibatches import draw_minibatches


def test_the_sizes_of_sd15_are_those_of_other_trainers():
    upright = [(256, 1024), (320, 768), (384, 640), (448, 576)]
    assert bucket_sizes(512, 64) == (*upright, (512, 512), *((h, w) for w, h in reversed(upright)))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((3000, 3000), (512, 512)),
        ((3000, 2000), (640, 384)),
        ((2000, 3000), (384, 640)),
        ((4000, 3000), (576, 448)),
        ((9000, 1000), (1024, 256)),
        ((40, 30), (576, 448)),
    ],
)
def test_an_image_gets_the_size_nearest_to_its_ratio(size, bucket):
    assert bucket_size(size, 512, 64) == bucket
    assert fit_to_bucket(Image.new("RGB", (size[0] // 10, size[1] // 10)), 512, 64).size == bucket


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 512, 768]))
def test_a_size_fits_the_unet_and_the_memory_of_a_square(width, height, resolution):
    sides = bucket_size((width, height), resolution, 64)
    assert all(side % 64 == 0 and 64 <= side <= 2 * resolution for side in sides)
    assert resolution**2 / 2 < sides[0] * sides[1] <= resolution**2 or resolution == 64


def sized(*sizes: tuple[int, int]) -> EncodedConcept:
    """One example for each (height, width) of latents."""
    example = random_concept(0, images=1).examples[0]
    made = [replace(example, mean=torch.full((4, *size), float(n)), std=None) for n, size in enumerate(sizes)]
    return EncodedConcept(made)


SIZES = [(8, 8)] * 5 + [(4, 16)] * 3 + [(16, 4)]


def test_every_minibatch_has_one_size_and_every_epoch_all_examples(denoiser):
    data, config = sized(*SIZES), resolved(buckets=True, batch_size=2)
    per_epoch = 3 + 2 + 1
    for epoch in range(3):
        seen = Counter()
        for number in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            picks = pick_examples(data.examples, config, number)
            assert len({pick.mean.shape for pick in picks}) == 1
            seen.update(float(pick.mean[0, 0, 0]) for pick in picks)
        assert seen == Counter(dict.fromkeys(map(float, range(len(SIZES))), 1))


def test_no_latent_is_cut_off_in_buckets(denoiser):
    data = sized(*SIZES)
    shapes = set()
    for step in range(20):
        (minibatch,) = draw_minibatches(data, denoiser, resolved(buckets=True, batch_size=2), step)
        shapes.add(tuple(minibatch.noisy.shape[2:]))
        assert len(minibatch.with_earlier) == len(minibatch.noisy)
    assert shapes == set(SIZES)


@pytest.mark.parametrize("sizes", [[(8, 8), (4, 16), (16, 4)], [(8, 8), (16, 4)], SIZES])
def test_earlier_concepts_are_active_for_half_of_the_images_in_buckets(denoiser, sizes):
    config = resolved(buckets=True, batch_size=4, train_on="alternate")
    drawn = [draw_minibatches(sized(*sizes), denoiser, config, step)[0] for step in range(40)]
    active = [acts for minibatch in drawn for acts in minibatch.with_earlier]
    assert active == [index % 2 == 0 for index in range(len(active))]


def test_buckets_and_random_squares_exclude_each_other():
    with pytest.raises(UserError, match="crop must be center"):
        TrainingConfig(buckets=True, crop="random")
