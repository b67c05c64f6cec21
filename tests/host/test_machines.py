"""What the host does to a model on machines that the tests do not have."""

import pytest
from graphs import loader, text, training, unet_alone

pytestmark = pytest.mark.slow


def test_weights_that_were_moved_outside_of_inference_mode_are_trained_on_and_stay_trainable(host):
    """As those of every model that waits in RAM for its turn on the graphics card."""
    nodes = {"unet": unet_alone(host), "moved": {"class_type": "TestsMovedWeights", "inputs": {"model": ["unet", 0]}}}
    for name in ("first", "second"):
        trained = training("dog", bank_name="moved", concept_name=name, model=["moved", 0])
        assert f"{name} learned" in text(host.run({**loader(), **nodes, **trained}), "train-dog")


def test_attention_that_is_for_sampling_alone_is_not_trained_through(host):
    def switch(on: bool) -> None:
        host.run({"switch": {"class_type": "TestsSamplingAttention", "inputs": {"on": on}}})

    switch(True)
    try:
        outputs = host.run({**loader(), **training("dog", bank_name="sampling attention")})
    finally:
        switch(False)
    assert "learned" in text(outputs, "train-dog")


def test_the_exact_hypergradient_is_had_in_the_host(host):
    changes = {"bank_name": "exact", "hypergradient": "exact", "steps": 2}
    assert "learned" in text(host.run({**loader(), **training("dog", **changes)}), "train-dog")
