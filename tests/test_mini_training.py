"""The making of the mini base: what is promised about stopping, and about what the base may see."""

import numpy as np
import pytest
import torch
from mini.catalogue import concepts, learned, things
from mini.identity import focus
from mini.pictures import (
    PLAIN,
    RELATIONS,
    SIDES,
    arranged_scene,
    as_tensor,
    caption,
    half_centres,
    one_thing,
    random_scene,
    thing_at_side,
    two_things,
)
from mini.runs import Run, adam, muon, one_cycle, plateau
from torch import nn


def _train(path, until, steps=6, schedule=one_cycle, optimizer=adam):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    run = Run(module, path, steps, step_size=0.1, schedule=schedule, optimizer=optimizer)
    while run.going() and run.done < until:
        batch = torch.from_numpy(run.rng.normal(size=(4, 3))).float() + torch.randn(4, 3, generator=run.noise)
        run.step(module(batch).square().mean())
    run.finish()
    return run.average.state_dict()


@pytest.mark.parametrize(("schedule", "optimizer"), [(one_cycle, adam), (plateau, muon)])
def test_a_stopped_training_ends_with_the_weights_of_an_unbroken_one(tmp_path, schedule, optimizer):
    how = {"schedule": schedule, "optimizer": optimizer}
    unbroken = _train(tmp_path / "a.pt", until=6, **how)
    _train(tmp_path / "b.pt", until=2, **how)
    resumed = _train(tmp_path / "b.pt", until=6, **how)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_training_on_a_plateau_can_be_made_longer_while_it_goes_on(tmp_path):
    long = _train(tmp_path / "a.pt", until=4, steps=600, schedule=plateau)
    _train(tmp_path / "b.pt", until=2, steps=300, schedule=plateau)
    longer = _train(tmp_path / "b.pt", until=4, steps=600, schedule=plateau)
    assert all(torch.equal(long[name], longer[name]) for name in long)


def test_muon_steps_about_as_far_in_every_direction(tmp_path):
    module = nn.Linear(6, 4, bias=False)
    nn.init.zeros_(module.weight)
    run = Run(module, tmp_path / "a.pt", 2, step_size=0.1, optimizer=muon)
    run.step_along(0.0, [torch.diag(torch.tensor([1.0, 0.5, 0.2, 0.1])) @ torch.eye(4, 6)])
    moved = torch.linalg.svdvals(module.weight.detach())
    assert moved.min() > 0.5 * moved.max() > 0


@pytest.mark.parametrize("own", [torch.contiguous_format, torch.channels_last])
def test_a_step_does_not_depend_on_the_memory_layout_of_its_gradients(tmp_path, own):
    stepped = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = nn.Conv2d(4, 8, 3).to(memory_format=own)
        run = Run(module, tmp_path / f"{layout}.pt", 2, step_size=0.1)
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


@pytest.mark.parametrize("draw", [random_scene, arranged_scene])
def test_training_pictures_show_learned_things_alone(looks, draw):
    for i in range(50):
        _, scene = draw(np.random.default_rng(i), looks, 3)
        assert set(scene.shown) <= {0, 1, 2}


def test_half_of_the_arranged_images_show_two_things_in_every_relation(looks):
    scenes = [arranged_scene(np.random.default_rng(i), looks, 3)[1] for i in range(400)]
    pairs = [scene for scene in scenes if len(scene.shown) == 2]
    assert 160 < len(pairs) < 240
    assert {scene.relation for scene in pairs} == set(RELATIONS)
    assert any(scene.shown[0] == scene.shown[1] for scene in pairs)
    assert {scene.relation for scene in scenes if len(scene.shown) == 1} == {"", *SIDES}


@pytest.mark.parametrize("side", SIDES)
def test_a_thing_stands_at_the_side_that_its_caption_says(looks, side):
    pixels, scene = thing_at_side(np.random.default_rng(0), looks, 1, side)
    x, y = SIDES[side]
    assert (pixels[y, x] == 2).all()
    assert not (pixels[31 - y, 31 - x] == 2).all()
    assert side in caption(np.random.default_rng(0), scene, PLAIN)


def test_each_thing_is_looked_at_alone(looks):
    made = [
        two_things(np.random.default_rng(0), looks, 1, 3, "above"),
        thing_at_side(np.random.default_rng(0), looks, 2, "on the left"),
        one_thing(np.random.default_rng(0), looks, 0),
    ]
    parts = focus(as_tensor(np.array([pixels for pixels, _ in made])), [scene for _, scene in made])
    middle = (parts[:, 0, 15:17, 15:17].mean((1, 2)) + 1) * 127.5
    assert middle[:3].round().tolist() == [2, 4, 3]
    assert len(parts) == 4


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_things_stand_as_the_caption_says(looks, relation):
    pixels, scene = two_things(np.random.default_rng(0), looks, 1, 3, relation)
    assert scene.relation == relation
    for gray, (x, y) in zip((2, 4), half_centres(relation), strict=True):
        assert (pixels[y, x] == gray).all()


def test_the_same_seed_draws_the_same_picture(looks):
    first, second = (one_thing(np.random.default_rng(7), looks, 2)[0] for _ in range(2))
    assert np.array_equal(first, second)
