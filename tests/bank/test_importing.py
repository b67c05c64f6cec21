"""LoRA files of other tools as concepts: every naming, what is left out, what is refused, and the projection."""

import pytest
import torch
from lora_files import kohya, random_adapters, update, write
from safetensors.torch import save_file
from training_runs import encoded, random_concept, resolved

from seqlora_core.bank import Bank, foreign_lora, lora_file
from seqlora_core.bank.importing import describe_import, import_lora
from seqlora_core.bank.inspection import inspect
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.cli.main import main
from seqlora_core.composition.concatenation import compose
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.base import load_base
from seqlora_core.model.sd15 import find_layers, original_names
from seqlora_core.training.trainer import train_concept

SPEC = ConceptSpec("style", "sksstyle", "style")


def test_text_encoder_and_other_layers_are_left_out_and_counted(bank, tmp_path):
    adapters = random_adapters(bank, ranks=(2,))
    more = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.randn(8, 2),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.randn(2, 8),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.randn(32, 2, 1, 1),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.randn(2, 32, 3, 3),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.randn(64, 2, 1, 1),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.randn(2, 64, 1, 1),
    }
    file = write(tmp_path / "x.safetensors", adapters, kohya, **more)
    lora = foreign_lora.read(file, bank.manifest.layers)
    assert lora.left_out == {"text encoder": 1, "convolution": 1, "other": 1}
    conv = torch.einsum("or,rn->on", more[list(more)[2]].flatten(1), more[list(more)[3]].flatten(1))
    other = more[list(more)[4]].flatten(1) @ more[list(more)[5]].flatten(1)
    taken = sum(update(adapter).square().sum() for adapter in adapters.values())
    everything = taken + conv.square().sum() + other.square().sum()
    assert lora.share == pytest.approx(float((taken / everything).sqrt()), rel=1e-4)
    text = describe_import(bank, import_lora(bank, file, SPEC))
    assert "1 text encoder, 1 convolution, 1 other layers" in text


def test_biases_and_norms_that_comfyui_s_own_tools_write_are_left_out_and_told(bank, tmp_path):
    """Train LoRA, and Extract and Save Lora: factors of every weight, and differences of all that has one dimension."""
    adapters, originals = random_adapters(bank), original_names(bank.manifest.layers)
    names = {layer: f"diffusion_model.{originals[layer]}" for layer in adapters}
    outputs = [layer for layer in adapters if layer.endswith("to_out.0")]  # the only ones with a bias
    biases = {f"{names[layer]}.diff_b": torch.ones(bank.manifest.layers[layer].out) for layer in outputs}
    alphas = {f"{name}.alpha": torch.tensor(1.0) for name in names.values()}
    conv = "diffusion_model.input_blocks.1.0.in_layers.2"
    more = {
        f"{conv}.lora_up.weight": torch.randn(32, 2, 1, 1),
        f"{conv}.lora_down.weight": torch.randn(2, 32, 3, 3),
        f"{conv}.diff_b": torch.randn(32),
        "diffusion_model.out.0.diff": torch.randn(32),
        "diffusion_model.out.0.diff_b": torch.randn(32),
    }
    file = write(tmp_path / "x.safetensors", adapters, lambda layer: f"{names[layer]}.", **biases, **alphas, **more)
    lora = foreign_lora.read(file, bank.manifest.layers)
    for layer, adapter in adapters.items():
        assert torch.allclose(update(lora.adapters[layer]), update(adapter) / adapter.A.shape[1], atol=1e-6)
    assert (lora.left_out, lora.partly) == ({"text encoder": 0, "convolution": 1, "other": 1}, len(outputs))
    assert lora.share < 1  # the convolution's factors count
    text = describe_import(bank, import_lora(bank, file, SPEC))
    assert "1 convolution, 1 other layers" in text
    assert f"in {len(outputs)} attention layers as well: changes of their biases" in text


def test_layers_that_change_nothing_take_no_room(bank, tmp_path):
    adapters = random_adapters(bank)
    empty = next(iter(adapters))
    adapters[empty] = Adapter.from_factors(torch.zeros_like(adapters[empty].A), adapters[empty].B)
    concept = import_lora(bank, write(tmp_path / "x.safetensors", adapters, kohya), SPEC)
    assert concept.layers_skipped == (empty,)
    assert inspect(bank).layers[empty]["used"] == 0


def refused(tmp_path, bank) -> dict:
    """Name of a file that cannot be used -> (its path, what the message says)."""
    adapters = random_adapters(bank)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    few = {
        "up": torch.randn(bank.manifest.layers[layer].out, 2),
        "down": torch.randn(2, bank.manifest.layers[layer].width),
    }
    name = lora_file.kohya_name(layer)

    def file(stem: str, metadata=None, **tensors) -> object:
        save_file(tensors, tmp_path / f"{stem}.safetensors", metadata)
        return tmp_path / f"{stem}.safetensors"

    def pair(prefix: str, up, down) -> dict:
        return {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_down.weight": down.clone()}

    good, sdxl = pair(name, **few), {"ss_base_model_version": "sdxl_base_v1-0"}
    (tmp_path / "broken.safetensors").write_bytes(b"rubbish")
    (tmp_path / "x.pt").write_bytes(b"rubbish")
    square = torch.randn(4, 4)
    return {
        "SDXL by its width": (file("w", **pair(name, few["up"], torch.randn(2, 2048))), "for SDXL"),
        "SDXL by its text encoder": (file("t", **good, **pair("lora_te2_x", square, square)), "for SDXL"),
        "SDXL by its depth": (
            file("d", **good, **pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", square, square)),
            "for SDXL",
        ),
        "SDXL by what it says": (write(tmp_path / "s.safetensors", adapters, kohya, metadata=sdxl), "for SDXL"),
        "Stable Diffusion 2": (file("2", **pair(name, few["up"], torch.randn(2, 1024))), "for Stable Diffusion 2"),
        "another width": (file("o", **pair(name, few["up"], torch.randn(2, 5))), "does not fit"),
        "no layer matches": (file("n", **pair("transformer.single_blocks.0.x", square, square)), "no attention layer"),
        "DoRA": (file("dora", **good, **{f"{name}.dora_scale": torch.ones(3)}), "not a plain LoRA"),
        "a whole difference": (file("diff", **{f"{name}.diff": few["up"]}), "not a plain LoRA"),
        "LoHa": (file("loha", **{f"{name}.hada_w1_a": square}), "not a plain LoRA"),
        "half of a pair": (file("half", **{f"{name}.lora_up.weight": few["up"]}), "not a plain LoRA"),
        "not finite": (file("nan", **pair(name, few["up"] * torch.nan, few["down"])), "not finite"),
        "a broken file": (tmp_path / "broken.safetensors", "cannot be read"),
        "no file": (tmp_path / "none.safetensors", "cannot be read"),
        "a pickle": (tmp_path / "x.pt", "not a .safetensors file"),
    }


def test_files_that_cannot_be_used_are_refused_in_one_sentence_and_change_nothing(bank, tmp_path):
    for case, (path, message) in refused(tmp_path, bank).items():
        with pytest.raises(UserError, match=message) as raised:
            import_lora(bank, path, SPEC)
        assert path.name in str(raised.value), case
    assert bank.refresh().concepts == ()


@pytest.fixture
def taught(denoiser, bank):
    """A bank with two trained concepts."""
    for name in ("dog", "cat"):
        config = resolved(steps=2, rank=4, lr_coefficients=0.05)
        train_concept(denoiser, encoded(random_concept(0)), bank, ConceptSpec(name, f"sks{name}", name), config)
    return bank


def test_an_import_as_it_is_keeps_its_weights_and_its_overlap_is_told(taught, tmp_path):
    adapters = random_adapters(taught)
    concept = import_lora(taught, write(tmp_path / "x.safetensors", adapters, kohya), SPEC)
    composed = compose(taught, [("style", 1.0)])
    assert all(torch.allclose(update(composed[layer]), update(adapters[layer])) for layer in adapters)
    text, result = describe_import(taught, concept), inspect(taught)
    assert not result.ok
    for earlier in ("dog", "cat"):
        assert result.pairs[earlier, "style"] > 1e-3
        assert f"Overlap with {earlier}: {result.pairs[earlier, 'style']:.1e}" in text
    assert "Not projected" in text
    assert "bleed" in text


def test_a_projected_import_is_orthogonal_and_says_what_was_lost(taught, tmp_path):
    adapters = random_adapters(taught)
    Q = taught.occupied()
    concept = import_lora(taught, write(tmp_path / "x.safetensors", adapters, kohya), SPEC, project=True)
    assert inspect(taught).ok
    composed = compose(taught, [("style", 1.0)])
    kept, whole = 0.0, 0.0
    for layer, adapter in adapters.items():
        original = update(adapter).double()
        expected = original - original @ Q[layer] @ Q[layer].mT
        assert torch.allclose(update(composed[layer]).double(), expected, atol=1e-4)
        kept, whole = kept + expected.square().sum(), whole + original.square().sum()
    share = float((kept / whole).sqrt())
    assert 0.5 < share < 1
    assert concept.metrics["remaining"] == pytest.approx(share, rel=1e-4)
    assert f"{share:.0%} of |dW|" in describe_import(taught, concept)


def test_a_copy_of_a_concept_has_nothing_left_to_project(taught, tmp_path):
    copy = taught.export("dog", tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match="Nothing of copy"):
        import_lora(taught, copy, SPEC, project=True)
    concept = import_lora(taught, copy, SPEC)
    assert concept.metrics["remaining"] == pytest.approx(0, abs=1e-5)
    assert len(taught.refresh().concepts) == 3


def test_a_later_training_keeps_off_an_imported_concept(denoiser, bank, tmp_path):
    import_lora(bank, write(tmp_path / "x.safetensors", random_adapters(bank), kohya), SPEC)
    config = resolved(steps=2, rank=2)
    train_concept(denoiser, encoded(random_concept(0)), bank, ConceptSpec("dog", "sksdog", "dog"), config)
    assert inspect(bank).ok


def test_the_same_import_again_changes_nothing_and_another_one_needs_replace(bank, tmp_path):
    file = write(tmp_path / "x.safetensors", random_adapters(bank), kohya)
    first, generation = import_lora(bank, file, SPEC), bank.manifest.generation
    assert import_lora(bank, file, SPEC) == first
    assert bank.refresh().manifest.generation == generation
    other = write(tmp_path / "x.safetensors", random_adapters(bank, seed=1), kohya)
    with pytest.raises(UserError, match="already has a concept 'style'"):
        import_lora(bank, other, SPEC)
    assert import_lora(bank, other, SPEC, replace=True).provenance.sha256 != first.provenance.sha256
    assert len(bank.concepts) == 1


def test_the_command_reports_and_fails_in_one_line(taught, tmp_path, capsys):
    file = write(tmp_path / "x.safetensors", random_adapters(taught), kohya)
    command = ["import", "--bank", str(taught.folder), "--name", "my style", "--class-word", "style"]
    assert main([*command, "--file", str(file), "--project"]) == 0
    out = capsys.readouterr().out
    assert "my style: 'sksmystyle style' from x.safetensors; 32 of 32 attention layers, rank 3." in out
    assert "Projected off the bank's concepts" in out
    assert main([*command, "--file", str(tmp_path / "none.safetensors")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_makes_a_bank_where_the_base_is_given(base_folder, tmp_path, capsys):
    command = ["import", "--bank", str(tmp_path / "new"), "--name", "s", "--class-word", "style", "--file", "x"]
    assert main(command) == 2
    assert "no bank" in capsys.readouterr().err
    assert main([*command, "--base", str(base_folder)]) == 2
    assert "not a .safetensors file" in capsys.readouterr().err
    assert main(["list", "--bank", str(tmp_path / "new")]) == 0


def test_a_file_that_diffusers_saved_acts_as_in_diffusers(base_folder, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None, requires_safety_checker=False)
    lora = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipeline.unet.add_adapter(lora)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    settings = {"unet_lora_adapter_metadata": pipeline.unet.peft_config["default"].to_dict()}
    pipeline.save_lora_weights(tmp_path, state, weight_name="saved.safetensors", **settings)

    base = load_base(str(base_folder))
    bank = Bank.open_or_create(tmp_path / "bank", base.identity, base.layers)
    import_lora(bank, tmp_path / "saved.safetensors", SPEC)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([400]), base.encode_prompt("a dog")[None]
    with torch.no_grad():
        plain = base.denoiser().predict_noise(*inputs)
        with attach(find_layers(base.pipeline.unet), compose(bank, [("style", 1.0)])):
            ours = base.denoiser().predict_noise(*inputs)
        theirs = pipeline.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    assert (ours - plain).abs().max() > 100 * (ours - theirs).abs().max()
