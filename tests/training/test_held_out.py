"""The loss of images that are not trained on."""

import dataclasses

import pytest
import torch
from training_runs import StopAfter, captioned, encoded, learn, random_concept, resolved, spec

from seqlora_core.bank import Bank
from seqlora_core.data.hold_out import split_held_out
from seqlora_core.errors import Cancelled, UserError
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.training.checkpoint import Checkpoint
from seqlora_core.training.held_out import TIMESTEPS, HeldOutLosses, held_out_loss
from seqlora_core.training.objective import DenoisingObjective
from seqlora_core.training.trainer import RunOptions, train_concept


class Measured(StopAfter):
    """Keeps the measurements, and may stop."""

    def __init__(self, steps: int = 99) -> None:
        super().__init__(steps)
        self.losses = {}

    def held_out(self, step, loss) -> None:
        self.losses[step] = loss


def divided(seed: int):
    """Four random images, one of them held out."""
    data = random_concept(seed, images=4)
    return dataclasses.replace(data, examples=data.examples[:3], held_out=data.examples[3:])


def test_the_seed_chooses_images_and_none_is_in_both_parts():
    images = list("abcdefgh")
    trained, held_out = split_held_out(images, 3, 1, images)
    assert sorted(trained + held_out) == images and len(held_out) == 3
    assert split_held_out(images, 3, 1, images)[1] == held_out != split_held_out(images, 3, 2, images)[1]
    assert split_held_out(images, 0, 1, images) == (images, [])


def test_copies_of_an_image_are_held_out_together():
    images = ["a1", "b1", "a2", "c1", "b2"]
    for seed in range(10):
        trained, held_out = split_held_out(images, 1, seed, [image[0] for image in images])
        assert [image[1] for image in held_out] == ["1"]
        assert not [image for image in trained if image[0] == held_out[0][0]]
        assert len(trained) == len([image for image in images if image[0] != held_out[0][0]])


@pytest.mark.parametrize("held_out", [1, 5])
def test_at_least_one_image_must_be_left_to_train_on(held_out):
    with pytest.raises(UserError, match="hold_out"):
        split_held_out(["a"], held_out, 0, ["a"])


def test_the_loss_is_the_error_of_the_predicted_noise(denoiser):
    seen = []

    class Zero(DiffusersDenoiser):
        def predict_noise(self, noisy, timesteps, text):
            seen.append((int(timesteps), noisy))
            return torch.zeros_like(noisy)

    data = divided(1)
    objective = DenoisingObjective(Zero(denoiser.unet, denoiser.alphas_cumprod), {})
    loss = held_out_loss(objective, ([], []), data, seed=0)
    assert [step for step, _ in seen] == [62, 187, 312, 437, 562, 687, 812, 937] and len(seen) == TIMESTEPS
    errors = []
    for step, noisy in seen:
        signal = denoiser.alphas_cumprod.cpu()[step]
        noise = (noisy.cpu() - signal.sqrt() * data.held_out[0].mean) / (1 - signal).sqrt()
        errors.append(noise.square().mean().item())
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert loss == held_out_loss(objective, ([], []), data, seed=0)


def test_only_what_lies_in_the_mask_of_a_held_out_image_counts(denoiser):
    data = divided(1)
    half = torch.zeros(1, 8, 8)
    half[..., :4] = 1

    class Wrong(DiffusersDenoiser):
        def predict_noise(self, noisy, timesteps, text):
            wrong = torch.zeros_like(noisy)
            wrong[..., 4:] = 100
            return wrong

    objective = DenoisingObjective(Wrong(denoiser.unet, denoiser.alphas_cumprod), {})
    masked = dataclasses.replace(data, held_out=[dataclasses.replace(data.held_out[0], mask=half)])
    assert held_out_loss(objective, ([], []), data, 0) > 1000
    assert held_out_loss(objective, ([], []), masked, 0) < 3


def test_losses_are_reported_and_stored_and_training_is_the_same(denoiser, bank):
    monitor, data = Measured(), divided(2)
    watched = learn(denoiser, bank, "a", data, monitor, steps=6, layers="cross-kv", lr_coefficients=0.05)
    metrics = Bank.open(bank.folder).concept("a").metrics
    assert metrics["held_out_steps"] == [0, 1, 2, 3, 4, 5, 6] == list(monitor.losses)
    assert metrics["held_out_curve"] == pytest.approx(list(monitor.losses.values()), abs=1e-6)
    assert metrics["held_out_loss"] == metrics["held_out_curve"][-1] != metrics["held_out_curve"][0]
    assert metrics["images"] == 3
    bank.remove("a")
    without = dataclasses.replace(data, held_out=())
    unwatched = learn(denoiser, bank, "a", without, steps=6, layers="cross-kv", lr_coefficients=0.05)
    assert watched.metrics["loss_curve"] == unwatched.metrics["loss_curve"]
    assert "held_out_loss" not in unwatched.metrics


def test_long_runs_measure_about_twenty_times():
    losses = HeldOutLosses()
    for step in range(46):
        if losses.is_due(step, 45):
            losses.losses[step] = 0.0
    assert len(losses.losses) == 24 and {0, 2, 44, 45} <= losses.losses.keys()
    assert not losses.is_due(44, 45)


def test_a_resumed_run_keeps_what_was_measured(denoiser, bank):
    run = {"steps": 6, "layers": "cross-kv"}
    whole = learn(denoiser, bank, "a", divided(3), **run).metrics["held_out_curve"]
    bank.remove("a")
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", divided(3), Measured(4), **run)
    assert [step for step, _ in Checkpoint.load(bank.checkpoint_path("a")).held_out] == [0, 1, 2, 3]
    again = Measured()
    resumed = learn(denoiser, bank, "a", divided(3), again, RunOptions(resume=True), **run)
    assert list(again.losses) == [4, 5, 6]
    assert resumed.metrics["held_out_curve"] == whole


def test_held_out_images_are_measured_with_the_learned_word(denoiser, bank, text_encoder):
    def encode(prompts, words):
        data = captioned(text_encoder, spec("a"))(prompts, words)
        return dataclasses.replace(data, examples=data.examples[:2], held_out=data.examples[2:])

    monitor, losses = Measured(), []
    for lr in (0.25, 5.0):
        config = resolved(token_vectors=2, token_share=0.5, steps=6, lr_token=lr)
        train_concept(denoiser, encode, bank, spec("a"), config, monitor, text_encoder=text_encoder)
        losses.append(monitor.losses[min(monitor.losses)])
        bank.remove("a")
    assert losses[0] != losses[1]  # before the factors' first step, the word alone differs


def test_held_out_images_of_other_data_are_another_run(denoiser, bank):
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", divided(3), Measured(1))
    other = dataclasses.replace(divided(3), held_out=random_concept(9, images=1).examples)
    with pytest.raises(UserError, match="data"):
        train_concept(
            denoiser, encoded(other), bank, spec("a"), resolved(layers="all"), options=RunOptions(resume=True)
        )
