"""The making of the mini base: what is promised about stopping, and about what the base may see."""

import numpy as np
import pytest
import torch
from mini.catalogue import concepts, learned, things
from mini.pictures import RELATIONS, half_centres, one_thing, random_scene, two_things
from mini.runs import Run
from torch import nn


def _train(path, until, steps=6):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    run = Run(module, path, steps, learning_rate=0.1)
    while run.going() and run.done < until:
        batch = torch.from_numpy(run.rng.normal(size=(4, 3))).float() + torch.randn(4, 3, generator=run.noise)
        run.step(module(batch).square().mean())
    run.finish()
    return run.average.state_dict()


def test_a_stopped_training_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    unbroken = _train(tmp_path / "a.pt", until=6)
    _train(tmp_path / "b.pt", until=2)
    resumed = _train(tmp_path / "b.pt", until=6)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_step_does_not_depend_on_the_memory_layout_of_its_gradients(tmp_path):
    stepped = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = nn.Conv2d(4, 8, 3)
        run = Run(module, tmp_path / f"{layout}.pt", 2, learning_rate=0.1)
        run.step_along(0.0, [torch.randn(p.shape) for p in module.parameters()])
        run.step_along(0.0, [_as(torch.randn(p.shape), layout) for p in module.parameters()])
        stepped.append(module.weight.detach().clone())
    assert torch.equal(*stepped)


def _as(tensor, layout):
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def test_the_base_learns_at_least_400_things_and_none_of_the_48_concepts():
    assert len(learned()) >= 400
    assert len(concepts()) == 48
    assert not {thing.emoji for thing in learned()} & {thing.emoji for thing in concepts()}
    assert len({thing.name for thing in things()}) == len(things())


@pytest.fixture
def looks():
    """Stand-ins for the emoji: thing i is a square of the gray i + 1."""
    gray = np.arange(1, 6, dtype=np.uint8)[:, None, None, None, None]
    looks = np.broadcast_to(gray, (5, 2, 64, 64, 4)).copy()
    looks[..., 3] = 255
    return looks


def test_training_pictures_show_learned_things_alone(looks):
    for i in range(50):
        _, scene = random_scene(np.random.default_rng(i), looks, 3)
        assert set(scene.shown) <= {0, 1, 2}


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_things_stand_as_the_caption_says(looks, relation):
    pixels, scene = two_things(np.random.default_rng(0), looks, 1, 3, relation)
    assert scene.relation == relation
    for gray, (x, y) in zip((2, 4), half_centres(relation), strict=True):
        assert (pixels[y, x] == gray).all()


def test_the_same_seed_draws_the_same_picture(looks):
    first, second = (one_thing(np.random.default_rng(7), looks, 2)[0] for _ in range(2))
    assert np.array_equal(first, second)
