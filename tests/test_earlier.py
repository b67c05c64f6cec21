"""The earlier concepts in a training: which of them each picture is seen with."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from seqlora_core.composition import sum_adapters
from seqlora_core.earlier import EarlierConcepts, selections
from seqlora_core.layers import Adapter, attached, find_layers

PICTURES = 4
GENERATOR = torch.Generator().manual_seed(3)
NOISY = torch.randn(PICTURES, 4, 8, 8, generator=GENERATOR)
TEXT = torch.randn(PICTURES, 5, 32, generator=GENERATOR)
TIMES = torch.tensor([10, 200, 500, 900])


def random_part(layers, rank: int) -> dict[str, Adapter]:
    widths = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    return {
        name: Adapter(*(torch.randn(width, rank, generator=GENERATOR) / 10 for width in both))
        for name, both in widths.items()
    }


def test_each_picture_of_a_batch_is_seen_with_its_own_selection(denoiser):
    layers = find_layers(denoiser.unet)
    some_full = dict(list(layers.items())[::2])  # a concept for which the other layers had no room
    parts = [random_part(layers, 2), random_part(some_full, 3), random_part(layers, 1)]
    chosen = torch.tensor([[True, True, True], [False, False, False], [True, False, True], [False, True, False]])
    earlier = EarlierConcepts(parts)
    with torch.no_grad():
        with attached(layers, earlier.adapters, earlier.gates):
            earlier.show(chosen)
            together = denoiser.predict_noise(NOISY, TIMES, TEXT)
            earlier.show(None)
            with_all = denoiser.predict_noise(NOISY, TIMES, TEXT)
        for picture in range(PICTURES):
            own = sum_adapters([(part, 1.0) for part, taken in zip(parts, chosen[picture], strict=True) if taken])
            with attached(layers, own):
                row = slice(picture, picture + 1)
                alone = denoiser.predict_noise(NOISY[row], TIMES[row], TEXT[row])
            assert torch.allclose(together[row], alone, atol=1e-4)
            assert torch.allclose(with_all[row], alone, atol=1e-4) == (picture == 0)


@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(1, 8), st.integers(1, 100))
def test_selections_depend_on_the_place_of_a_picture_alone(seed, first, pictures, concepts):
    later = selections(seed, first, pictures, concepts)
    assert torch.equal(later, selections(seed, first - first % 4, pictures + first % 4, concepts)[first % 4 :])


def test_half_of_the_pictures_have_all_concepts_and_the_others_from_none_to_all():
    seen = selections(seed=1, first=0, pictures=400, concepts=20)
    shares = seen.float().mean(1)
    assert bool((shares[::2] == 1).all())
    counts = torch.histc(shares[1::2], bins=4, min=0, max=1)
    assert int(counts.min()) >= 35 and int(counts.max()) <= 65
    often = seen[1::2].float().mean(0)  # of each concept
    assert float(often.min()) > 0.35 and float(often.max()) < 0.65
