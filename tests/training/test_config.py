"""What settings a training can have."""

import pytest

from seqlora_core.errors import UserError
from seqlora_core.training.config import HYPERGRADIENT_NAMES, METHOD_NAMES, TrainingConfig
from seqlora_core.training.hypergradient import HYPERGRADIENTS
from seqlora_core.training.methods import METHODS


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"steps": 0},
        {"lr_coefficients": 0.0},
        {"lr_basis": float("nan")},
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


def test_the_names_that_users_choose_from_are_those_of_the_tables():
    assert set(METHOD_NAMES) == METHODS.keys()
    assert set(HYPERGRADIENT_NAMES) == HYPERGRADIENTS.keys()
