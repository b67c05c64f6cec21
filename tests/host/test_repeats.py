"""The same graph queued twice, and the same concept added twice."""

import pytest
from comfy_server import NodeError
from graphs import composed, loader, text, training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bank(host) -> dict:
    """A node that loads a bank with the concepts "dog" and "cat"."""
    changes = {"bank_name": "repeats", "steps": 1}
    host.run({**loader(), **training("dog", **changes), **training("cat", **changes)})
    return {"bank": composed("", "repeats")["bank"]}


def act(host, bank: dict, kind: str, **inputs) -> str:
    return text(host.run({**bank, "act": {"class_type": kind, "inputs": {"bank": ["bank", 0], **inputs}}}), "act")


def test_a_renaming_and_a_removal_queued_again_say_that_they_are_done(host, bank):
    host.run({**loader(), **training("dog", bank_name="repeats", concept_name="old", steps=1)})
    rename, remove = (
        ("SeqLoRARenameConcept", {"concept_name": "old", "new_name": "new"}),
        ("SeqLoRARemoveConcept", {"concept_name": "new"}),
    )
    assert "old is now new" in act(host, bank, rename[0], **rename[1])
    assert "was renamed to new before" in act(host, bank, rename[0], **rename[1])
    assert "Removed new" in act(host, bank, remove[0], **remove[1])
    assert "was removed before" in act(host, bank, remove[0], **remove[1])
    for kind, inputs in (rename, ("SeqLoRARemoveConcept", {"concept_name": "never there"})):
        with pytest.raises(NodeError, match="has no concept"):
            act(host, bank, kind, **inputs)


@pytest.mark.smoke
def test_a_concept_is_not_added_twice_to_one_model(host, bank):
    def twice(first: str, second: str) -> dict:
        nodes = composed(first, "repeats")
        again = {"model": ["compose", 0], "bank": ["bank", 0], "concepts": second}
        nodes["again"] = {"class_type": "SeqLoRAComposeConcepts", "inputs": again}
        show = {"class_type": "PreviewAny", "inputs": {"source": ["again", 1]}}
        return host.run({**loader(), **nodes, "show": show})

    with pytest.raises(NodeError, match="already carries the concept 'dog'"):
        twice("dog, cat", "dog:0.5")
    assert "skscat cat" in text(twice("dog", "cat"), "show")


@pytest.mark.parametrize("concepts", ["<lora:dog:0.8> <lora:cat:1>", "dog 0.8 cat 1", "dog:0,8, cat"])
def test_strengths_in_the_forms_of_other_tools_are_understood(host, bank, concepts):
    nodes = {**loader(), **composed(concepts, "repeats")}
    show = {"show": {"class_type": "PreviewAny", "inputs": {"source": ["compose", 1]}}}
    assert text(host.run({**nodes, **show}), "show") == "sksdog dog, skscat cat"


def test_what_is_off_while_training_is_named(host, bank):
    free = {"model": ["base", 0], "b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
    nodes = {**loader(), "free": {"class_type": "FreeU_V2", "inputs": free}}
    trained = training("dog", bank_name="repeats", concept_name="free", model=["free", 0], steps=1)
    assert "sampling only: FreeU_V2" in text(host.run({**nodes, **trained}), "train-dog")


def test_the_free_directions_shown_are_those_of_layers_that_concepts_use(host, bank):
    """Keys and values of the text have width 768; the narrowest layers, which no concept here uses, have 320."""
    show = {"show": {"class_type": "PreviewAny", "inputs": {"source": ["bank", 1]}}}
    shown = text(host.run({**bank, **show}), "show")
    concepts = shown.count("rank 2")
    assert f"At least {768 - 2 * concepts} directions are free" in shown
