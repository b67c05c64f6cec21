"""Settings of common wishes: what each one changes of a step, and that it changes nothing else."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import compute_snr
from training_runs import StopAfter, captioned, encoded, equal, factors, learn, random_concept, resolved, spec

from seqlora_core.errors import Cancelled, UserError
from seqlora_core.model.sd15 import sd15_alphas_cumprod
from seqlora_core.training.config import TrainingConfig, auto_steps
from seqlora_core.training.factor_optimizer import FactorOptimizer
from seqlora_core.training.loss_weights import min_snr_weights
from seqlora_core.training.methods import resolve
from seqlora_core.training.minibatches import WORD_PHASE, draw_minibatches
from seqlora_core.training.plan import already_trained
from seqlora_core.training.schedule import learning_rate_factor
from seqlora_core.training.trainer import RunOptions, train_concept

EMPTY = torch.full((7, 32), 9.0)
CHANGES = (
    {"min_snr_gamma": 5.0},
    {"noise_offset": 0.1},
    {"lr_schedule": "cosine"},
    {"lr_warmup": 0.5},
    {"caption_dropout": 0.5},
)


def drawn(denoiser, data=None, step=0, phase="step", **settings):
    (minibatch,) = draw_minibatches(data or random_concept(1), denoiser, resolved(**settings), step, phase)
    return minibatch


def with_empty(seed: int = 1):
    return dataclasses.replace(random_concept(seed), empty=EMPTY)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_diffusers_scripts(gamma):
    alphas, timesteps = sd15_alphas_cumprod(), torch.tensor([0, 1, 250, 500, 999])
    snr = compute_snr(SimpleNamespace(alphas_cumprod=alphas), timesteps)
    bounded = torch.minimum(snr, torch.full_like(snr, gamma))
    torch.testing.assert_close(min_snr_weights(alphas, timesteps, gamma), bounded / snr)
    assert min_snr_weights(alphas, timesteps, gamma)[-1] == 1  # what is mostly noise keeps its weight


def test_min_snr_weighs_the_gradient_of_each_image_by_its_timestep(denoiser):
    plain, weighted = (drawn(denoiser, batch_size=3, **own) for own in ({}, {"min_snr_gamma": 0.5}))
    gradients = []
    for minibatch in (plain, weighted):
        prediction = torch.zeros_like(minibatch.noise, requires_grad=True)
        gradients += torch.autograd.grad(minibatch.squared_error(prediction), prediction)
    weights = min_snr_weights(denoiser.alphas_cumprod.cpu(), plain.timesteps.cpu(), 0.5).to(plain.noise.device)
    assert weights.min() < 0.5
    torch.testing.assert_close(gradients[1], gradients[0] * weights.view(-1, 1, 1, 1))


def test_the_noise_offset_is_one_number_per_image_and_channel(denoiser):
    plain, offset = (drawn(denoiser, batch_size=2, noise_offset=size) for size in (0.0, 0.5))
    difference = offset.noise - plain.noise
    torch.testing.assert_close(difference, difference[:, :, :1, :1].expand_as(difference))
    assert difference[:, :, 0, 0].abs().min() > 1e-3 and len(difference[:, :, 0, 0].unique()) == 8
    signal = denoiser.alphas_cumprod[plain.timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(offset.noisy - plain.noisy, (1 - signal).sqrt() * difference)  # the target is the noise


def test_a_share_of_the_captions_is_replaced_by_the_empty_prompt(denoiser):
    empty = [
        bool((drawn(denoiser, with_empty(), step, caption_dropout=0.3).text == EMPTY).all()) for step in range(200)
    ]
    assert 0.2 < sum(empty) / len(empty) < 0.4
    kept = drawn(denoiser, with_empty(), empty.index(False), caption_dropout=0.3)
    assert torch.equal(kept.text, drawn(denoiser, with_empty(), empty.index(False)).text)


def test_images_of_the_class_and_steps_of_the_word_keep_their_captions(denoiser):
    data = dataclasses.replace(with_empty(), prior=random_concept(3).examples)
    config = resolved(caption_dropout=0.9)
    for step in range(20):
        assert not (draw_minibatches(data, denoiser, config, step)[1].text == EMPTY).any()
        (of_word,) = draw_minibatches(with_empty(), denoiser, config, step, WORD_PHASE)
        assert not (of_word.text == EMPTY).any()


@pytest.mark.parametrize("change", [{"min_snr_gamma": 5.0}, {"noise_offset": 0.1}, {"caption_dropout": 0.9}])
def test_a_setting_leaves_all_other_random_numbers_as_they_are(denoiser, change):
    for step in range(4):
        plain, changed = (drawn(denoiser, with_empty(), step, **own) for own in ({}, change))
        assert torch.equal(plain.timesteps, changed.timesteps)
        if "noise_offset" not in change:
            assert torch.equal(plain.noisy, changed.noisy)
        if "caption_dropout" not in change:
            assert torch.equal(plain.text, changed.text)


def test_the_cosine_is_that_of_diffusers_after_its_warmup():
    config, steps = resolved(lr_schedule="cosine", lr_warmup=0.25), 40
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, steps)
    for step in range(steps):
        if step >= 10:
            assert learning_rate_factor(config, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rising = [learning_rate_factor(config, step, steps) for step in range(11)]
    assert rising == pytest.approx([number / 11 for number in range(1, 12)])


def test_a_constant_rate_is_untouched():
    assert {learning_rate_factor(resolved(), step, 30) for step in range(30)} == {1.0}
    warmed = [learning_rate_factor(resolved(lr_warmup=0.5), step, 4) for step in range(4)]
    assert warmed == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("kind", ["adam", "gradient"])
def test_a_scaled_step_size_scales_the_step_and_its_preview(kind):
    moved, sizes = [], []
    for factor in (1.0, 0.25):
        parameter = torch.zeros(3, 2)
        optimizer = FactorOptimizer([parameter], kind, 0.1, 0.0)
        optimizer.scale_step_size(factor)
        gradient = torch.arange(1.0, 7.0).reshape(3, 2)
        sizes.append(optimizer.step_sizes([gradient])[0])
        optimizer.step([gradient])
        moved.append(parameter)
    torch.testing.assert_close(moved[1], moved[0] / 4)
    torch.testing.assert_close(sizes[1], sizes[0] / 4)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_setting_makes_another_concept_that_resumes_exactly(denoiser, bank, change):
    made = []
    for settings, stop in (({}, None), (change, None), (change, 3)):
        options = RunOptions(resume=stop is not None)
        run = {"data": with_empty(4), "steps": 5, "layers": "cross-kv", **settings}
        if stop is not None:
            with pytest.raises(Cancelled):
                learn(denoiser, bank, "a", monitor=StopAfter(stop), **run)
        learn(denoiser, bank, "a", options=options, **run)
        made.append(factors(bank, "a"))
        bank.remove("a")
    plain, uninterrupted, resumed = made
    assert equal(uninterrupted, resumed)
    assert not equal(plain, uninterrupted)


def test_dropped_captions_change_what_the_concept_does_without_its_word(denoiser, bank, text_encoder):
    """Without dropped captions, the interference penalty alone decides; with them, the concept shows there, too."""
    changed = {}
    for share in (0.0, 0.9):
        data = dataclasses.replace(with_empty(2), protected=EMPTY[None])
        learn(denoiser, bank, "a", data, steps=8, caption_dropout=share, lr_coefficients=0.02, layers="cross-kv")
        adapters = factors(bank, "a").values()
        changed[share] = sum(
            float((a.up @ (a.down @ EMPTY[0])).norm()) for a in adapters if a.down.shape[1] == len(EMPTY[0])
        )
        bank.remove("a")
    assert changed[0.9] > 2 * changed[0.0]


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UserError, match="caption_dropout must be 0"):
        TrainingConfig(acts_on="own-words", caption_dropout=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"caption_dropout": 1.0},
        {"min_snr_gamma": -1.0},
        {"min_snr_gamma": 1e-12},
        {"noise_offset": 2.0},
        {"lr_warmup": 1.0},
        {"lr_schedule": "linear"},
        {"hold_out": -1},
        {"caption_prefix": "two\nlines"},
        {"caption_prefix": "x" * 501},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_values_out_of_range_are_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        TrainingConfig(**settings)


@pytest.mark.parametrize(("images", "steps"), [(1, 400), (5, 500), (8, 800), (100, 2000)])
def test_steps_that_are_left_open_follow_the_number_of_images(images, steps):
    assert auto_steps(images) == steps
    config = resolve(TrainingConfig(steps=None), 512, "float32", images)
    assert config.steps == steps
    assert resolve(TrainingConfig(steps=None, hold_out=1), 512, "float32", images + 1).steps == steps
    with pytest.raises(UserError, match="steps has no value"):
        resolve(TrainingConfig(steps=None), 512, "float32")


def test_a_chosen_number_of_steps_is_reported_and_stored(denoiser, bank):
    requested = TrainingConfig(steps=None, rank=2, token_vectors=0)
    config = dataclasses.replace(resolve(requested, 512, "float32", 3), steps=2)
    monitor = StopAfter(99)
    concept = train_concept(denoiser, encoded(random_concept(1)), bank, spec("a"), config, monitor, requested=requested)
    assert "The setting steps is 2, chosen by the number of images." in monitor.messages
    assert (concept.requested["steps"], concept.settings["steps"]) == (None, 2)


def test_a_concept_from_before_these_settings_is_already_trained(denoiser, bank):
    data = dataclasses.replace(random_concept(1), source="images")
    concept = train_concept(denoiser, encoded(data), bank, spec("a"), resolved(steps=1))
    before = [entry.name for entry in dataclasses.fields(TrainingConfig.__mro__[1])]
    assert len(before) >= 8
    for name in before:
        del concept.settings[name]
    assert already_trained(bank.refresh(), spec("a"), resolved(steps=1), "images")
    for change in ({"min_snr_gamma": 5.0}, {"caption_prefix": "x"}, {"alpha_masks": True}, {"hold_out": 1}):
        assert already_trained(bank, spec("a"), resolved(steps=1, **change), "images") is None


def test_the_word_is_learned_with_the_dropped_captions_of_the_factors(denoiser, bank, text_encoder):
    """The empty prompt names no word, so a run that drops captions still learns it."""

    def encode(prompts, words):
        data = captioned(text_encoder, spec("a"))(prompts, words)
        return dataclasses.replace(data, empty=text_encoder.encode_all([""])[0])

    config = resolved(token_vectors=2, token_share=0.5, steps=4, caption_dropout=0.9)
    concept = train_concept(denoiser, encode, bank, spec("a"), config, text_encoder=text_encoder)
    assert len(concept.metrics["word_loss_curve"]) == 4
