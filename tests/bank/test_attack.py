"""A bounded part of the attack on banks (`tests/bank_attack.py`)."""

import os

import bank_attack
import pytest

COUNTS = {"kills": 12, "faults": 15, "readers": 5, "manifests": 120, "checkpoints": 120}


@pytest.mark.parametrize("part", COUNTS)
def test_a_bank_under_attack_gives_right_results_or_one_sentence(part):
    if part in ("kills", "readers") and not hasattr(os, "fork"):
        pytest.skip("without fork, every process takes seconds to start")
    results = list(bank_attack.PARTS[part](COUNTS[part], seed=1))
    assert len(results) == COUNTS[part]
    assert len(set(results)) > 1 or part == "readers"
