"""Files of other tools: every naming, what is measured, and what is refused by name."""

import contextlib
import json
import tracemalloc

import pytest
import tiny_base
import torch
from lora_files import kohya, random_adapters, update, write
from safetensors.torch import save, save_file

from seqlora_core.bank import foreign_lora, lora_file
from seqlora_core.bank.weight_change import squared_norm
from seqlora_core.errors import UserError
from seqlora_core.model.sd15 import find_layers, layer_shapes, original_names

NAMINGS = {
    "kohya": (kohya, "lora_up.weight", "lora_down.weight"),
    "LyCORIS": (lambda layer: f"lycoris_{layer.replace('.', '_')}.", "lora_up.weight", "lora_down.weight"),
    "diffusers": (lambda layer: f"unet.{layer}.", "lora_B.weight", "lora_A.weight"),
    "diffusers 0.20": (lambda layer: f"unet.{layer}.", "lora.up.weight", "lora.down.weight"),
    "diffusers 0.18": (
        lambda layer: "unet." + layer.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_") + "_lora.",
        "up.weight",
        "down.weight",
    ),
    "PEFT": (lambda layer: f"base_model.model.{layer}.", "lora_B.weight", "lora_A.weight"),
    "PEFT of a training": (lambda layer: f"{layer}.", "lora_B.default.weight", "lora_A.default.weight"),
}


@pytest.mark.parametrize("naming", list(NAMINGS))
def test_every_naming_is_read_alike(bank, tmp_path, naming):
    adapters = random_adapters(bank)
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, *NAMINGS[naming]), bank.manifest.layers)
    assert lora.adapters.keys() == adapters.keys()
    assert all(torch.allclose(update(lora.adapters[layer]), update(adapters[layer])) for layer in adapters)
    assert not any(lora.left_out.values())
    assert lora.share == 1.0


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_names_of_the_original_layout_are_read(bank, tmp_path, prefix):
    adapters, originals = random_adapters(bank), original_names(bank.manifest.layers)

    def name_of(layer: str) -> str:
        name = prefix + originals[layer]
        return f"{name.replace('.', '_')}." if prefix.endswith("_") else f"{name}."

    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, name_of), bank.manifest.layers)
    assert all(torch.allclose(update(lora.adapters[layer]), update(adapters[layer])) for layer in adapters)


def test_original_names_of_stable_diffusion_are_those_of_its_checkpoints():
    rest = "transformer_blocks.0.attn1.to_q"
    layers = [f"{way}_blocks.{level}.attentions.{position}.{rest}" for way, level, position in (
        ("down", 0, 0), ("down", 0, 1), ("down", 2, 1), ("up", 1, 0), ("up", 3, 2)
    )]  # fmt: skip
    names = original_names([*layers, f"mid_block.attentions.0.{rest}"])
    blocks = [name.removesuffix(f".{rest}") for name in names.values()]
    assert blocks == [
        *("input_blocks.1.1", "input_blocks.2.1", "input_blocks.8.1"),
        *("output_blocks.3.1", "output_blocks.11.1", "middle_block.1"),
    ]


def test_alpha_scales_wherever_a_tool_keeps_it(bank, tmp_path):
    adapters = random_adapters(bank, ranks=(4,))
    alphas = {f"{kohya(layer)}alpha": torch.tensor(1.0) for layer in adapters}
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 1, "text_encoder.lora_alpha": 8})
    diffusers, peft = NAMINGS["diffusers"], NAMINGS["PEFT"]
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 1}')
    files = [
        write(tmp_path / "a.safetensors", adapters, kohya, **alphas),
        write(tmp_path / "b.safetensors", adapters, *diffusers, metadata={"lora_adapter_metadata": settings}),
        write(tmp_path / "peft" / "adapter_model.safetensors", adapters, *peft),
    ]
    for file in files:
        lora = foreign_lora.read(file, bank.manifest.layers)
        assert lora.alpha_known
        assert all(torch.allclose(update(lora.adapters[layer]) * 4, update(adapters[layer])) for layer in adapters)
    unknown = foreign_lora.read(write(tmp_path / "c.safetensors", adapters, *diffusers), bank.manifest.layers)
    assert not unknown.alpha_known


def test_an_attention_layer_of_whose_change_only_the_bias_is_left_is_no_error(bank, tmp_path):
    """The extraction leaves the factors of weights out that are the same in both models."""
    adapters, layer = random_adapters(bank), "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    del adapters[layer]
    bias = {f"{kohya(layer)}diff_b": torch.ones(bank.manifest.layers[layer].out)}
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, kohya, **bias), bank.manifest.layers)
    assert lora.adapters.keys() == adapters.keys()
    assert lora.left_out["other"] == 1


def file_of(tmp_path, stem: str, tensors: dict, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / stem, metadata)
    return tmp_path / stem


@pytest.mark.parametrize(
    ("prefix", "up", "down"),
    [
        ("unet.unet.", "lora.up.weight", "lora.down.weight"),
        ("unet.", "lora_B.default_0.weight", "lora_A.default_0.weight"),
        ("base_model.model.unet.", "lora_B.my-style.weight", "lora_A.my-style.weight"),
        ("transformer.", None, None),
        ("model.diffusion_model.", "lora_up.weight", "lora_down.weight"),
    ],
)
def test_prefixes_and_adapter_names_of_more_tools_are_read(bank, tmp_path, prefix, up, down):
    adapters, originals = random_adapters(bank), original_names(bank.manifest.layers)
    names = {layer: prefix + (originals[layer] if "diffusion_model" in prefix else layer) + "." for layer in adapters}
    path = tmp_path / "x.SAFETENSORS"
    if up is None:
        with pytest.raises(UserError, match="no attention layer"):
            foreign_lora.read(write(path, adapters, names.get, "lora_B.weight", "lora_A.weight"), bank.manifest.layers)
        return
    lora = foreign_lora.read(write(path, adapters, names.get, up, down), bank.manifest.layers)
    assert all(torch.allclose(update(lora.adapters[layer]), update(adapters[layer])) for layer in adapters)


@pytest.mark.parametrize("modules", [("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"), ("attn1", "attn2")])
@pytest.mark.parametrize("ways", [("down", "up", "mid"), ("down", "mid", "up")])
def test_numbered_layers_are_read_where_their_order_is_certain(tmp_path, modules, ways):
    """As cloneofsimo's tool saves them, in the order of the modules of the diffusers of the time."""
    unet = tiny_base.make_unet()
    linear = {name: module for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
    blocks = list(dict.fromkeys(name.rsplit(".attn", 1)[0] for name in linear if ".attn1." in name))
    blocks = [block for way in ways for block in blocks if block.startswith(way)]
    inside = {
        "ff": ("ff.net.0.proj",),
        **{attn: tuple(f"{attn}.to_{end}" for end in ("q", "k", "v", "out.0")) for attn in ("attn1", "attn2")},
    }
    order = [f"{block}.{end}" for block in blocks for module in modules for end in inside[module]]
    torch.manual_seed(0)
    tensors = {"text_encoder:0:up": torch.ones(8, 2), "text_encoder:0:down": torch.ones(2, 8)}
    for number, name in enumerate(order):
        tensors[f"unet:{number}:up"] = torch.randn(linear[name].out_features, 2)
        tensors[f"unet:{number}:down"] = torch.randn(2, linear[name].in_features)
    layers = layer_shapes(find_layers(unet))
    lora = foreign_lora.read(file_of(tmp_path, "x.safetensors", tensors), layers)
    assert lora.adapters.keys() == layers.keys()
    assert lora.alpha_known
    for number, name in enumerate(order):
        if name in layers:
            expected = tensors[f"unet:{number}:up"] @ tensors[f"unet:{number}:down"]
            assert torch.allclose(update(lora.adapters[name]), expected)
    assert lora.left_out == {"text encoder": 1, "convolution": 0, "other": len(order) - len(layers)}


def test_numbered_layers_of_no_known_order_are_refused(bank, tmp_path):
    tensors = {"unet:0:up": torch.ones(7, 2), "unet:0:down": torch.ones(2, 5)}
    with pytest.raises(UserError, match=r"x\.safetensors numbers its layers"):
        foreign_lora.read(file_of(tmp_path, "x.safetensors", tensors), bank.manifest.layers)


CONV, NORM = "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_resnets_0_norm1"


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _plain() -> tuple[dict, torch.Tensor]:
    up, down = _random(16, 3, 1, 1), _random(3, 8, 3, 3)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(6.0)}, 2 * torch.einsum(
        "orxy,rikl->oikl", up, down
    )


def _cp() -> tuple[dict, torch.Tensor]:
    up, mid, down = _random(16, 3, 1, 1), _random(3, 3, 3, 3), _random(3, 8, 1, 1)
    dw = torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
    return {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}, dw


def _loha() -> tuple[dict, torch.Tensor]:
    a, b, c, d = _random(16, 2), _random(2, 72), _random(16, 2) + 1, _random(2, 72) - 1
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}, 0.5 * (
        (a @ b) * (c @ d)
    )


def _lokr() -> tuple[dict, torch.Tensor]:
    w1, a, b = _random(4, 4), _random(4, 2), _random(2, 18)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(4.0)}, 2 * torch.kron(w1, a @ b)


def _norm() -> tuple[dict, torch.Tensor]:
    return {"w_norm": _random(16), "b_norm": _random(17)}, torch.cat([_random(16), _random(17)])


@pytest.mark.parametrize("kind", [_plain, _cp, _loha, _lokr, _norm])
def test_the_share_that_was_taken_counts_every_kind_of_change(bank, tmp_path, kind):
    adapters = random_adapters(bank, ranks=(2,))
    parts, change = kind()
    more = {f"{CONV}.{part}": tensor for part, tensor in parts.items()}
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, kohya, **more), bank.manifest.layers)
    taken = sum(update(adapter).double().square().sum() for adapter in adapters.values())
    expected = (taken / (taken + change.double().square().sum())).sqrt()
    assert expected < 0.99999
    assert lora.share == pytest.approx(float(expected), rel=1e-6)
    assert lora.uncounted == 0


def test_changes_that_depend_on_the_base_are_said_to_be_uncounted(bank, tmp_path):
    parts, _ = _plain()
    more = {f"{CONV}.{part}": tensor for part, tensor in parts.items()} | {f"{CONV}.dora_scale": torch.ones(16)}
    more |= {f"{NORM}.oft_blocks": torch.ones(2, 4, 4)}
    adapters = random_adapters(bank)
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, kohya, **more), bank.manifest.layers)
    assert lora.uncounted == 2
    assert "100% of what can be measured" in foreign_lora.describe_share(lora.share, lora.uncounted)
    assert "2 further changes" in foreign_lora.describe_share(lora.share, lora.uncounted)
    assert "more than 99%" in foreign_lora.describe_share(0.9999, 0)


def test_a_loha_convolution_is_as_large_as_peft_makes_it(bank, tmp_path):
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3)),
        LoHaConfig(r=2, alpha=4, target_modules=["0"], init_weights=False),
    )
    layer = model.base_model.model[0]
    change = layer.get_delta_weight("default").detach()
    parts = {
        part: getattr(layer, part)["default"].detach() for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    size = squared_norm({**parts, "alpha": torch.tensor(4.0)}, None)
    assert size == pytest.approx(float(change.double().square().sum()), rel=1e-5)


def _with(adapters, **changes) -> dict:
    tensors = lora_file.to_state_dict(adapters)
    first = lora_file.kohya_name(next(iter(adapters)))
    return tensors | {f"{first}.{part.replace('__', '.')}": tensor for part, tensor in changes.items()}


def other_files(tmp_path, bank) -> dict:
    """Name of a file that cannot be used -> (its path, what the message says)."""
    adapters = random_adapters(bank, ranks=(2,))
    layer = next(iter(adapters))
    up, down = torch.zeros(bank.manifest.layers[layer].out, 0), torch.zeros(0, bank.manifest.layers[layer].width)
    raw = {
        "html": (b"<!DOCTYPE html><html>Please sign in</html>", "web page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS pointer"),
        "empty": (b"", "is empty"),
        "zeros": (bytes(5000), "zeros"),
        "zip": (b"PK\x03\x04" + bytes(100), "pickle"),
        "pickle": (b"\x80\x02}q\x00." + bytes(100), "pickle"),
        "error": (b'{"error": "not found", "status": 404}', "JSON"),
        "image": (b"\x89PNG\r\n\x1a\n" + bytes(100), "image"),
        "truncated": (save(_with(adapters))[:-100], "100 bytes are missing"),
        "longer": (save(_with(adapters)) + b"x", "1 bytes too many"),
        "short header": (save(_with(adapters))[:200], "within its header"),
        "huge header": ((2**40).to_bytes(8, "little") + b"{" + bytes(100), "its header has"),
    }
    for name, (content, _) in raw.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    folder, bare = tmp_path / "trainer", tmp_path / "bare"
    (folder / "checkpoint-500").mkdir(parents=True)
    bare.mkdir()
    file_of(folder, "checkpoint-500/model.safetensors", {"x": torch.ones(1)})
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02")
    pair = {"lora_up.weight": torch.ones(4, 1), "lora_down.weight": torch.ones(1, 4)}

    def named(stem: str, layer: str, metadata=None):
        return file_of(tmp_path, f"{stem}.safetensors", {f"{layer}.{end}": v for end, v in pair.items()}, metadata)

    def changed(stem: str, **changes):
        return file_of(tmp_path, f"{stem}.safetensors", _with(adapters, **changes))

    zeros = {key: tensor if key.endswith("alpha") else 0 * tensor for key, tensor in _with(adapters).items()}
    return {name: (tmp_path / f"{name}.safetensors", message) for name, (_, message) in raw.items()} | {
        "Flux": (named("flux", "lora_unet_double_blocks_0_img_attn_proj"), "for Flux"),
        "Flux of diffusers": (named("flux2", "transformer.single_transformer_blocks.0.attn.to_q"), "for Flux"),
        "SD3": (named("sd3", "lora_unet_joint_blocks_0_x_block_attn_proj"), "Stable Diffusion 3"),
        "another transformer": (named("wan", "diffusion_model.blocks.0.self_attn.q"), "a transformer model"),
        "SD2 by what it says": (named("sd2", lora_file.kohya_name(layer), {"ss_v2": "True"}), "for Stable Diffusion 2"),
        "text encoder only": (named("te", "lora_te_text_model_encoder_layers_0_mlp_fc1"), "text encoder only"),
        "motion": (named("motion", "down_blocks.0.motion_modules.0.temporal_transformer.x"), "AnimateDiff"),
        "embedding": (file_of(tmp_path, "ti.safetensors", {"emb_params": torch.ones(4, 768)}), "textual inversion"),
        "embedding of diffusers": (
            file_of(tmp_path, "ti2.safetensors", {"<cat>": torch.ones(1, 768)}),
            "textual inversion",
        ),
        "a full model": (
            file_of(tmp_path, "full.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}),
            "a full model",
        ),
        "nothing inside": (file_of(tmp_path, "none inside.safetensors", {}), "holds no tensors"),
        "all zero": (file_of(tmp_path, "zero.safetensors", zeros), "changes nothing"),
        "a folder": (folder, "checkpoint-500.model.safetensors"),
        "an empty folder": (bare, "without .safetensors files"),
        "an old pickle": (tmp_path / "old.ckpt", "can run code"),
        "LoKr": (changed("lokr", lokr_w1=torch.ones(2, 2)), "a LoKr"),
        "OFT": (changed("oft", oft_blocks=torch.ones(2, 2)), "an OFT"),
        "several adapters": (
            changed("two", lora_A__a__weight=torch.ones(2, 4), lora_A__b__weight=torch.ones(2, 4)),
            "several adapters",
        ),
        "alpha of two values": (changed("alpha2", alpha=torch.ones(2)), "2 values instead of one"),
        "alpha of no value": (changed("alphaless", alpha=torch.ones(0)), "0 values instead of one"),
        "alpha 0": (changed("alpha0", alpha=torch.tensor(0.0)), "alpha 0"),
        "alpha NaN": (changed("alphanan", alpha=torch.tensor(torch.nan)), "not finite"),
        "alpha infinite": (changed("alphainf", alpha=torch.tensor(torch.inf)), "not finite"),
        "rank 0": (changed("rank0", lora_up__weight=up, lora_down__weight=down), "rank 0"),
        "numbers that overflow": (changed("big", alpha=torch.tensor(1e38, dtype=torch.float64)), "finite number"),
        "infinite numbers": (changed("inf", lora_up__weight=torch.full((*up.shape[:1], 2), torch.inf)), "not finite"),
    }


def test_what_else_is_no_lora_of_this_base_is_said_in_one_sentence(bank, tmp_path):
    for case, (path, message) in other_files(tmp_path, bank).items():
        with pytest.raises(UserError, match=message) as raised:
            foreign_lora.read(path, bank.manifest.layers)
        text = str(raised.value)
        assert path.name in text, case
        assert "\n" not in text, case
        assert len(text) < 400, case


@pytest.mark.parametrize(
    "settings", ["[1]", "5", "null", "{", '{"unet.lora_alpha": [1]}', '{"unet.lora_alpha": true}', "[" * 9999]
)
def test_metadata_of_any_json_type_never_ends_in_a_traceback(bank, tmp_path, settings):
    path = write(tmp_path / "x.safetensors", random_adapters(bank), kohya, metadata={"lora_adapter_metadata": settings})
    with contextlib.suppress(UserError):
        foreign_lora.read(path, bank.manifest.layers)
    path = write(tmp_path / "y.safetensors", random_adapters(bank), kohya, metadata={"ss_tag_frequency": settings})
    assert foreign_lora.read(path, bank.manifest.layers).adapters


def test_nothing_of_a_large_file_of_another_kind_is_loaded(bank, tmp_path):
    """4 GB of zeros, of which the disk holds a few bytes."""
    header = json.dumps({"model.x": {"dtype": "F16", "shape": [2**31], "data_offsets": [0, 2**32]}}).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**32)
    tracemalloc.start()
    for read in (lambda path: foreign_lora.read(path, bank.manifest.layers), lora_file.read):
        with pytest.raises(UserError, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
