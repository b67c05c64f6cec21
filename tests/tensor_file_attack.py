"""Damage LoRA files, learned words and the headers of checkpoints at random.

Everything but a result or a UserError is a fault.  `attack.py` is the command.
"""

import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from seqlora_core.bank import embedding_file, foreign_lora, lora_file
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape
from seqlora_core.model.single_file import check_header
from seqlora_core.tensor_file import TensorFile

MOST_SECONDS = 5.0  # of processor time, of one file
_VALUES = (
    *(None, True, 0, -1, 1.5, 2**31, 2**62, 10**30, "", "F32", "F4", "x" * 2000),
    *([], [0], [1, 2], [2**40, 2**40], {}),
)
_OTHER_LAYERS = ("lora_unet_down_blocks_0_resnets_0_conv1", "unet.unet.x", "lora_te_x", "unet:0:up", "")
_PARTS = (
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "diff", "diff_b", "dora_scale", "hada_w1_a"),
    *("lokr_w1", "lokr_w2_b", "lora_A.x.weight", "lora_B.y.weight", "oft_blocks", "w_norm", "weight"),
)
_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def layers() -> dict[str, LayerShape]:
    """Two levels of SD1.5's attention layers at reduced width."""
    blocks = (_BLOCK, "mid_block.attentions.0.transformer_blocks.0", _BLOCK.replace("down_blocks.0", "up_blocks.1"))
    names = [f"{block}.attn{n}.to_{end}" for block in blocks for n in (1, 2) for end in ("q", "k", "v", "out.0")]
    return {name: LayerShape(6 if name.endswith(("attn2.to_k", "attn2.to_v")) else 8, 8) for name in names}


def lora(rng: random.Random) -> bytes:
    """A LoRA file, with parts of other kinds and shapes in it."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    adapters = {
        layer: Adapter(torch.randn(shape.out, 2, generator=generator), torch.randn(2, shape.width, generator=generator))
        for layer, shape in layers().items()
    }
    tensors = lora_file.to_state_dict(adapters)
    names = [key.split(".")[0] for key in tensors]
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        name = rng.choice([*names, *_OTHER_LAYERS * 40])
        size = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randrange(5))]
        value = torch.full(size, rng.choice((0.0, 1.0, 1.0, 1.0, -1.0, 2.5, 1e38, float("nan"), float("inf"))))
        kind = rng.choice((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.float8_e4m3fn, torch.bool))
        tensors[f"{name}.{rng.choice(_PARTS)}"] = value.to(kind)
    for _ in range(rng.choice((0, 0, 1))):
        tensors.pop(rng.choice(list(tensors)))
    texts = ("", "sdxl", "[1]", "{}", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": 5}', "[" * 5000, "\ud7ff")
    said = ("lora_adapter_metadata", "ss_base_model_version", "modelspec.architecture", "ss_v2")
    return save(tensors, {rng.choice(said): rng.choice(texts)} if rng.random() < 0.3 else None)


def word(rng: random.Random) -> bytes:
    """A textual inversion, in one of the layouts of other tools, or bundled with a LoRA."""
    vectors = torch.randn(rng.randint(1, 4), 768)
    name = rng.choice(["sksdog", "emb_params", "string_to_param.*", "bundle_emb.sksdog.string_to_param.*"])
    return save({name: vectors})


def checkpoint() -> bytes:
    """The reduced-width SD1.5 base of the tests in its original layout."""
    import tiny_base

    with tempfile.TemporaryDirectory() as folder:
        shape = {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        }
        pipeline = tiny_base.make_pipeline(Path(folder), **shape)
        return save(tiny_base.original_layout(pipeline))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The same file with bytes or parts of its header changed."""
    length = int.from_bytes(content[:8], "little")
    way = rng.choice((0, 1, 1, 2, 2, 2, 3, 4, 5))
    if way == 0:
        return content[: rng.randrange(len(content) + 1)]
    if way == 1:  # bytes anywhere, mostly in the header
        changed = bytearray(content)
        for _ in range(rng.choice((1, 2, 8, 100))):
            changed[rng.randrange(rng.choice((10, length, len(content))))] = rng.randrange(256)
        return bytes(changed)
    if way == 2:
        return content
    header = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        key = rng.choice(list(header))
        if way == 3 and isinstance(header[key], dict) and header[key]:
            header[key][rng.choice(list(header[key]))] = rng.choice(_VALUES)
        elif way == 4:
            header[key] = rng.choice(_VALUES)
        else:
            renamed = (key[: len(key) // 2], key + ".x", key.replace("0", "9" * 12), "a" * 3000)
            header[rng.choice(renamed)] = header.pop(key)
        if not header:
            break
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def attack(count: int, seed: int, base: bytes | None, seconds: float = float("inf")) -> Iterator[str]:
    """Read damaged files; yields what became of each: "read", or the sentence's first words.

    Raises:
        AssertionError: a reader took too long; any other error but UserError is a fault as well.
    """
    rng, shapes, until = random.Random(seed), layers(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        for index in range(count):
            if time.monotonic() > until:
                return
            of_base = base is not None and index % 8 == 7
            content = damaged(base if of_base else rng.choice([lora, lora, lora, word])(rng), rng)
            path.write_bytes(content)
            started = time.process_time()
            readers = {
                "base": lambda: check_header(path),
                "foreign": lambda: foreign_lora.read(path, shapes),
                "composed": lambda: lora_file.read(path),
                "bank": lambda content=content: lora_file.deserialize(content, "x"),
                "word": lambda content=content: embedding_file.deserialize(content, "x"),
                "bundle": lambda: embedding_file.bundled_words(TensorFile.open(path)),
                "tensors": lambda: [tensor for tensor in TensorFile.open(path).values()],
            }
            for name, read in readers.items():
                if (name == "base") != of_base and name not in ("foreign", "composed"):
                    continue
                try:
                    read()
                    yield f"{name}: read"
                except UserError as error:
                    assert "\n" not in str(error) and len(str(error)) < 700, str(error)
                    yield f"{name}: refused"
            assert time.process_time() - started < MOST_SECONDS, f"file {index} of seed {seed} is slow"
