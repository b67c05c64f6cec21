"""Importing LoRA files of other tools in the host."""

import pytest
import torch
from comfy_server import NodeError
from graphs import draw, loader, text
from safetensors.torch import save_file

from seqlora_core.bank import Bank, lora_file
from seqlora_core.bank.inspection import inspect
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape

pytestmark = pytest.mark.slow


def importing(name: str, file: str, **changes) -> dict:
    inputs = {"lora_name": file, "bank_name": "imports", "concept_name": name, "token": f"sks{name}"}
    inputs |= {"class_word": "style", "project": False, "on_existing": "error", "model": ["base", 0], **changes}
    return {**loader(), "import": {"class_type": "SeqLoRAImportLora", "inputs": inputs}}


def compose(concepts: str) -> dict:
    inputs = {"model": ["base", 0], "bank": ["bank", 0], "concepts": concepts}
    return {
        "bank": {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": "imports"}},
        "compose": {"class_type": "SeqLoRAComposeConcepts", "inputs": inputs},
    }


@pytest.fixture(scope="module")
def files(host) -> dict[str, LayerShape]:
    """LoRA files of the host's small model: two that overlap, one with a text encoder's layer, and one of SDXL."""
    host.run(importing("probe", _write(host, "probe", {})))
    bank = Bank.open(host.folder / "models" / "seqlora" / "imports")
    bank.remove("probe")
    for name, seed in (("first", 1), ("second", 2)):
        _write(host, name, _random(bank.manifest.layers, seed))
    return bank.manifest.layers


SOME_LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def _write(host, name: str, adapters: dict[str, Adapter], width: int = 768, **more) -> str:
    adapters = adapters or {SOME_LAYER: Adapter.from_factors(torch.ones(640, 2), torch.ones(width, 2))}
    save_file({**lora_file.to_state_dict(adapters), **more}, host.folder / "models" / "loras" / f"{name}.safetensors")
    return f"{name}.safetensors"


def _random(layers: dict[str, LayerShape], seed: int) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(seed)

    def factor(width: int) -> torch.Tensor:
        return torch.randn(width, 4, generator=generator) / width**0.5

    return {layer: Adapter.from_factors(3 * factor(shape.out), factor(shape.width)) for layer, shape in layers.items()}


def test_an_import_acts_as_the_file_in_the_stock_loader(host, files):
    report = text(host.run(importing("first", "first.safetensors")), "import")
    assert "'sksfirst style' from first.safetensors" in report
    assert "no other concept" in report
    stock = {"model": ["base", 0], "lora_name": "first.safetensors", "strength_model": 1.0}
    theirs = draw(host, ["lora", 0], "file", {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": stock}})
    ours = draw(host, ["compose", 0], "import", compose("first"))
    assert abs(ours - theirs).max() <= 1
    assert abs(ours - draw(host, ["base", 0], "plain")).max() > 2


def test_an_import_that_overlaps_is_taken_and_told_and_one_that_is_projected_does_not(host, files):
    host.run(importing("first", "first.safetensors"))
    bank = Bank.open(host.folder / "models" / "seqlora" / "imports")
    report = text(host.run(importing("loud", "second.safetensors")), "import")
    assert "Not projected" in report
    assert f"Overlap with first: {inspect(bank).pairs['first', 'loud']:.1e}" in report
    assert not inspect(bank).ok
    bank.remove("loud")
    report = text(host.run(importing("quiet", "second.safetensors", project=True)), "import")
    assert "% of |dW|" in report
    assert inspect(bank).ok


def test_the_same_import_again_leaves_the_bank_as_it_is(host, files):
    prompt = importing("again", "first.safetensors", bank_name="again")
    host.run(prompt)
    bank = Bank.open(host.folder / "models" / "seqlora" / "again")
    del prompt["import"]["inputs"]["model"]  # an existing bank needs none
    host.run(prompt)
    assert bank.refresh().manifest.generation == 1


def test_files_that_do_not_fit_get_a_clear_error_and_the_server_lives(host, files):
    _write(host, "sdxl", {}, width=2048)
    nothing = {"transformer.single_blocks.0.x.lora_up.weight": torch.ones(2, 2)}
    save_file(nothing, host.folder / "models" / "loras" / "flux.safetensors")
    for file, changes, message in (
        ("sdxl.safetensors", {}, "is a LoRA for SDXL"),
        ("flux.safetensors", {}, "changes no attention layer"),
        ("first.safetensors", {"bank_name": "nowhere", "model": None}, "no bank in"),
        ("first.safetensors", {"token": " "}, "token is empty"),
        ("none.safetensors", {}, "none.safetensors"),
    ):
        prompt = importing("wrong", file, **changes)
        inputs = prompt["import"]["inputs"]
        prompt["import"]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
        with pytest.raises(NodeError, match=message):
            host.run(prompt)
    assert host.request("/system_stats")
