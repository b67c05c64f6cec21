"""Training runs that diverge or explode, and base models that are not finite: never stored, and said by name."""

import copy
import dataclasses
import math

import pytest
import torch
from training_runs import StopAfter, learn, random_concept

from seqlora_core.errors import TrainingDiverged, TrainingExploded, UserError
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.training.checkpoint import Checkpoint
from seqlora_core.training.factor_optimizer import FactorOptimizer
from seqlora_core.training.objective import DenoisingObjective
from seqlora_core.training.trainer import RunOptions

EXPLODING = {"method": "lora", "rank": 16, "lr_coefficients": 1.0, "lr_basis": 1.0, "steps": 8, "clip": 0.0}


def test_a_run_that_exploded_is_stored_only_if_the_user_says_so(denoiser, bank):
    with pytest.raises(TrainingExploded, match=r"rose from \S+ to \S+, so the concept is not stored: lower lr_coeff"):
        learn(denoiser, bank, "a", **EXPLODING)
    assert bank.refresh().concepts == ()
    monitor = StopAfter(99)
    learn(denoiser, bank, "a", monitor=monitor, options=RunOptions(resume=True, store_anyway=True), **EXPLODING)
    assert monitor.done == 0  # it was trained to its end before
    metrics = bank.refresh().concept("a").metrics
    assert metrics["final_loss"] > 5 * metrics["first_loss"]
    assert any("stored all the same" in text for text in monitor.messages)


def test_factors_that_overflow_in_a_step_are_undone_and_not_stored(denoiser, bank, monkeypatch):
    real = FactorOptimizer.step

    def overflowing(self, gradients):
        real(self, gradients)
        if len(calls := [*calls_so_far, 1]) > 5:
            self.parameters[0].data[0, 0] = math.inf
        calls_so_far[:] = calls

    calls_so_far: list[int] = []
    monkeypatch.setattr(FactorOptimizer, "step", overflowing)
    with pytest.raises(TrainingDiverged, match="lr_coefficients"):
        learn(denoiser, bank, "a", steps=8)
    assert bank.refresh().concepts == ()
    saved = Checkpoint.load(bank.checkpoint_path("a"))
    assert 0 < saved.step < 8
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values())


@pytest.mark.parametrize(
    ("dtype", "advice"), [("float32", "use another base model"), ("bfloat16", "use dtype float32")]
)
def test_a_base_that_gives_nan_before_any_step_is_said_to_be_that(denoiser, bank, dtype, advice):
    broken = copy.deepcopy(denoiser.unet)
    broken.conv_out.bias.data[0] = math.nan
    other = DiffusersDenoiser(broken, denoiser.alphas_cumprod)
    with pytest.raises(UserError, match=f"The base model gives NaN in {dtype}: .*{advice}") as caught:
        learn(other, bank, "a", dtype=dtype)
    assert "lr_" not in str(caught.value)


def test_a_base_that_overflows_only_later_in_the_first_step_is_said_to_be_that(denoiser, monkeypatch):
    objective = DenoisingObjective(denoiser, {}, "float16")
    monkeypatch.setattr(
        DenoisingObjective, "_scaled_gradients", lambda self, A, B: (math.nan, [torch.tensor(math.nan)] * 2)
    )
    with pytest.raises(UserError, match="gives NaN in float16: use dtype float32"):
        objective.gradients([torch.zeros(2, 1)], [torch.ones(2, 1)])
    with pytest.raises(TrainingDiverged, match="lower lr_coefficients and lr_basis, or use dtype float32"):
        objective.gradients([torch.ones(2, 1)], [torch.ones(2, 1)])


@pytest.mark.parametrize("layers", ["cross-kv", "all"])
def test_protected_prompts_that_are_not_finite_end_in_a_sentence(denoiser, bank, layers):
    data = dataclasses.replace(random_concept(1), protected=torch.full((3, 7, 32), math.nan))
    with pytest.raises(UserError, match="The base model gives NaN in float32"):
        learn(denoiser, bank, "a", data, layers=layers)


def test_images_that_were_encoded_to_nan_are_not_blamed_on_the_base(denoiser, bank):
    data = random_concept(1)
    data.examples[1].mean[0, 0, 0] = math.nan
    with pytest.raises(UserError, match="encoded images or captions hold NaN"):
        learn(denoiser, bank, "a", data)


def test_a_preview_that_is_not_finite_is_not_shown(denoiser, bank, monkeypatch):
    class Previews(StopAfter):
        def previewed(self, latents):
            raise AssertionError

    monkeypatch.setattr("seqlora_core.training.trainer.preview_latents", lambda *_: torch.full((1, 4, 8, 8), math.nan))
    monitor = Previews(99)
    learn(denoiser, bank, "a", monitor=monitor, options=RunOptions(preview_every=1), steps=1)
    assert any("preview of step 1 is not finite" in text for text in monitor.messages)
