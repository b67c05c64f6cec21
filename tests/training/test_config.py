"""The settings of a training run: what is refused, and what becomes of those that a user leaves open."""

import dataclasses

import pytest
from training_runs import StopAfter, encoded, learn, random_concept, resolved, spec

from seqlora_core.errors import Cancelled, UserError
from seqlora_core.training import methods
from seqlora_core.training.config import HYPERGRADIENT_NAMES, METHOD_NAMES, ResolvedConfig, TrainingConfig
from seqlora_core.training.hypergradient import HYPERGRADIENTS
from seqlora_core.training.plan import already_trained
from seqlora_core.training.trainer import RunOptions, train_concept


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"steps": 0},
        {"steps": 10**400},
        {"lr_coefficients": 0.0},
        {"lr_basis": float("nan")},
        {"clip": float("inf")},
        {"method": "magic"},
        {"resolution": 100},
        {"hypergradient": "exact", "gradient_checkpointing": True},
        {"hypergradient": "exact", "dtype": "float16"},
        {"hypergradient": "exact", "lower_step": "reuse"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        TrainingConfig(**settings)


@pytest.mark.parametrize("optimizer", ["adam", "gradient"])
def test_a_network_alpha_is_not_taken_for_a_learning_rate(optimizer):
    with pytest.raises(UserError, match="learning rate, not the alpha of a LoRA"):
        TrainingConfig(optimizer=optimizer, lr_coefficients=16.0 if optimizer == "adam" else 1e308)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_nothing_is_left_open_once_settings_are_resolved(method):
    config = methods.resolve(TrainingConfig(method=method), native_size=32, dtype="bfloat16")
    assert None not in config.as_dict().values()
    assert (config.resolution, config.dtype) == (32, "bfloat16")
    assert ResolvedConfig.from_dict(config.as_dict()) == config


def test_asking_for_a_default_is_leaving_it_open():
    asked = {"init": "contrastive", "train_on": "alternate", "lower_step": "reuse", "average": 0.5}
    assert resolved(**asked) == resolved()
    assert resolved(hypergradient="exact").lower_step == "repeat"


def test_names_and_values_from_before_mean_the_same():
    old = {"alpha": 0.01, "crosstalk": 0.5, "draw": "independent", "train_on": "subsets", "lower_step": "again"}
    new = {"lr_coefficients": 0.01, "interference_penalty": 0.5, "column_sampling": "independent"}
    assert TrainingConfig.from_dict(old) == TrainingConfig(**new, train_on="alternate", lower_step="repeat")
    assert TrainingConfig.from_dict({"init": "auto"}) == TrainingConfig()


def test_the_names_in_the_settings_are_those_of_the_tables():
    assert set(METHOD_NAMES) == set(methods.METHODS)
    assert set(HYPERGRADIENT_NAMES) == set(HYPERGRADIENTS)


@pytest.fixture
def changed_default(monkeypatch):
    """Call it, and seqlora penalizes interference differently, as a later release might."""

    def change() -> None:
        seqlora = methods.METHODS["seqlora"]
        defaults = {**seqlora.defaults, "interference_penalty": 0.5}
        monkeypatch.setitem(methods.METHODS, "seqlora", dataclasses.replace(seqlora, defaults=defaults))

    return change


def test_a_changed_default_is_not_already_trained_and_is_replaced(denoiser, bank, changed_default):
    data = dataclasses.replace(random_concept(1), source="images")
    train_concept(denoiser, encoded(data), bank, spec("a"), resolved(steps=1))
    assert already_trained(bank.refresh(), spec("a"), resolved(steps=1), "images")
    changed_default()
    assert already_trained(bank, spec("a"), resolved(steps=1), "images") is None
    replaced = train_concept(
        denoiser, encoded(data), bank, spec("a"), resolved(steps=1), options=RunOptions(replace=True)
    )
    assert replaced.settings["interference_penalty"] == 0.5


def test_a_changed_default_does_not_resume_the_old_run(denoiser, bank, changed_default):
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", monitor=StopAfter(2))
    changed_default()
    with pytest.raises(UserError, match=r"its interference_penalty was 0\.01 and is now 0\.5"):
        learn(denoiser, bank, "a", options=RunOptions(resume=True))


def test_a_bank_stores_what_was_computed_and_what_was_asked(denoiser, bank):
    requested = TrainingConfig(steps=1, rank=2, token_vectors=0)
    config = methods.resolve(requested, native_size=512, dtype="float32")
    data = encoded(random_concept(1))
    train_concept(denoiser, data, bank, spec("a"), config, requested=requested)
    concept = bank.refresh().concept("a")
    assert (concept.settings["train_on"], concept.requested["train_on"]) == ("alternate", None)
