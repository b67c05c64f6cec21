"""The report on a bank with damaged concepts, and its overlaps at every rank."""

import math

import pytest
from lora_files import kohya, random_adapters, write
from safetensors.torch import load_file, save

from seqlora_core.bank.importing import describe_import, import_lora
from seqlora_core.bank.inspection import inspect, overlaps_with
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.errors import UserError
from seqlora_core.hashing import sha256
from seqlora_core.model.adapters import Adapter


def damage(bank, name: str, value: float) -> None:
    """Put a number into a concept's file, and its new sha256 into the manifest."""
    concept = bank.concept(name)
    path = bank.folder / concept.file
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if "lora_up" in key).view(-1)[0] = value
    content = save(tensors)
    path.write_bytes(content)
    text = (bank.folder / "bank.json").read_text("utf-8")
    (bank.folder / "bank.json").write_text(text.replace(concept.sha256, sha256(content)), "utf-8")


@pytest.fixture
def three(bank, tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        file = write(tmp_path / f"{name}.safetensors", random_adapters(bank, seed=seed), kohya)
        import_lora(bank, file, ConceptSpec(name, f"sks{name}", "thing"))
    return bank


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_concept_that_is_not_finite_is_named_and_the_rest_measured(three, value):
    whole = inspect(three)
    damage(three, "b", value)
    result = inspect(three)
    assert len(result.problems) == 1
    assert "not finite" in result.problems[0]
    assert "b.safetensors" in result.problems[0]
    assert result.pairs == {("a", "c"): pytest.approx(whole.pairs["a", "c"])}
    assert not result.ok
    assert overlaps_with(three, three.concept("a")) == {"c": pytest.approx(whole.pairs["a", "c"])}
    with pytest.raises(UserError, match="not finite"):
        overlaps_with(three, three.concept("b"))


@pytest.mark.parametrize("rank", [1, 8])
def test_the_same_lora_twice_overlaps_by_1_at_every_rank(bank, tmp_path, rank):
    file = write(tmp_path / "x.safetensors", random_adapters(bank, ranks=(rank,)), kohya)
    import_lora(bank, file, ConceptSpec("first", "sks1", "thing"))
    second = import_lora(bank, file, ConceptSpec("second", "sks2", "thing"))
    assert inspect(bank).max_overlap == pytest.approx(1.0, abs=1e-6)
    assert "Overlap with first: 1.0e+00" in describe_import(bank, second)


def test_overlaps_do_not_depend_on_the_strength_a_file_was_trained_to(bank, tmp_path):
    adapters = random_adapters(bank, ranks=(4,))
    scaled = {layer: Adapter(50 * adapter.up, adapter.down / 9) for layer, adapter in adapters.items()}
    for index, factors in enumerate((random_adapters(bank, ranks=(2,), seed=5), adapters, scaled)):
        file = write(tmp_path / f"{index}.safetensors", factors, kohya)
        import_lora(bank, file, ConceptSpec(f"n{index}", f"sks{index}", "thing"))
    pairs = inspect(bank).pairs
    assert pairs["n0", "n1"] == pytest.approx(pairs["n0", "n2"], rel=1e-5)
    assert pairs["n0", "n1"] < 1
