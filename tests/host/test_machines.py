"""What the host does to a model on machines that the tests do not have."""

import pytest
from comfy_server import NodeError
from graphs import loader, text, training, unet_alone

pytestmark = pytest.mark.slow


def test_weights_that_were_moved_outside_of_inference_mode_are_trained_on_and_stay_trainable(host):
    """As those of every model that waits in RAM for its turn on the graphics card."""
    nodes = {"unet": unet_alone(host), "moved": {"class_type": "TestsMovedWeights", "inputs": {"model": ["unet", 0]}}}
    for name in ("first", "second"):
        trained = training("dog", bank_name="moved", concept_name=name, model=["moved", 0])
        assert f"{name} learned" in text(host.run({**loader(), **nodes, **trained}), "train-dog")


def packed(host, by_host: bool) -> dict:
    # A model of its own: of the kinds of weights, no other test asks the loader for this one.
    unet = unet_alone(host, "fp8_e5m2")
    inputs = {"model": ["unet", 0], "by_host": by_host}
    return {"unet": unet, "packed": {"class_type": "TestsPackedWeights", "inputs": inputs}}


def test_weights_that_another_pack_has_packed_are_refused_by_every_node_that_takes_a_model(host):
    host.run({**loader(), **training("dog", bank_name="packed", steps=1)})
    export = {"class_type": "SeqLoRAExportConcept", "inputs": {"bank": ["bank", 0], "concept_name": "dog"}}
    export["inputs"]["file_name"] = "to-import"
    bank = {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": "packed"}}
    host.run({"bank": bank, "export": export})
    compose = {"model": ["packed", 0], "bank": ["bank", 0], "concepts": ""}
    show = {"class_type": "PreviewAny", "inputs": {"source": ["compose", 2]}}
    imported = {"lora_name": "to-import.safetensors", "bank_name": "packed", "concept_name": "n", "token": "sksn"}
    imported |= {"class_word": "dog", "project": False, "on_existing": "error", "model": ["packed", 0]}
    for nodes in (
        {**loader(), **training("cat", bank_name="packed", model=["packed", 0])},
        {"bank": bank, "compose": {"class_type": "SeqLoRAComposeConcepts", "inputs": compose}, "show": show},
        {"import": {"class_type": "SeqLoRAImportLora", "inputs": imported}},
    ):
        with pytest.raises(NodeError, match=r"packed as GGMLTensor.* load the \.safetensors model"):
            host.run({**packed(host, by_host=False), **nodes})


def test_weights_that_the_host_has_packed_itself_are_not_refused(host):
    nodes = {**loader(), **packed(host, by_host=True)}
    trained = training("dog", bank_name="packed by the host", model=["packed", 0], steps=1)
    assert "learned" in text(host.run({**nodes, **trained}), "train-dog")


@pytest.mark.smoke
def test_products_of_eight_bits_which_have_no_derivative_are_not_tried_while_training(host):
    """The host writes into its log where one has failed; where one has not, the backward pass fails."""
    unet = {"unet": unet_alone(host, "fp8_e4m3fn")}
    [kinds] = host.request("/object_info/TestsEightBitProducts")["TestsEightBitProducts"]["input"]["required"]["kind"]
    for kind in kinds:
        fast = {"class_type": "TestsEightBitProducts", "inputs": {"model": ["unet", 0], "kind": kind}}
        trained = training("dog", bank_name=f"fast {kind}", model=["fast", 0], steps=1)
        assert "learned" in text(host.run({**loader(), **unet, "fast": fast, **trained}), "train-dog")
        assert "Exception during fp8 op" not in host.log()


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
