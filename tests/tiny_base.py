"""SD1.5-shaped base models of reduced width with random weights, for tests and for trying the command line.

python tests/tiny_base.py FOLDER            a diffusers folder
python tests/tiny_base.py FILE.safetensors  a single file in SD1.5's original layout, with FOLDER `tokenizer` beside it
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CHANNELS = (32, 64, 128, 128)
TEXT_WIDTH = 64


def make_unet(channels=CHANNELS, layers_per_block: int = 2, text_width: int = TEXT_WIDTH, seed: int = 0, **changes):
    """SD1.5's UNet, narrower: attention on every level but the deepest, eight heads."""
    torch.manual_seed(seed)
    attending = len(channels) - 1
    config = {
        "sample_size": 16,
        "block_out_channels": channels,
        "layers_per_block": layers_per_block,
        "down_block_types": ["CrossAttnDownBlock2D"] * attending + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attending,
        "cross_attention_dim": text_width,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def make_text_encoder(tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH) -> CLIPTextModel:
    """CLIP's text encoder, narrower and with two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=1,
        eos_token_id=len(tokenizer) - 1,
        bos_token_id=len(tokenizer) - 2,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def make_pipeline(folder: Path, seed: int = 0, **unet_changes) -> StableDiffusionPipeline:
    """All parts of a Stable Diffusion 1.5 pipeline; `folder` receives the tokenizer's files."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    tokenizer = make_tokenizer(folder)
    text_encoder = make_text_encoder(tokenizer)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=make_unet(seed=seed, **unet_changes),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{char}</w>" for char in alphabet), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def save_folder(path: Path, seed: int = 0, **unet_changes) -> Path:
    """A diffusers folder."""
    with tempfile.TemporaryDirectory() as scratch:
        make_pipeline(Path(scratch), seed, **unet_changes).save_pretrained(path)
    return path


def save_single_file(path: Path, seed: int = 0) -> Path:
    """A single file in the original layout; its tokenizer goes into a folder beside it."""
    pipeline = make_pipeline(path.parent / "tokenizer", seed)
    save_file(original_layout(pipeline), path)
    return path


def original_layout(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The weights of a pipeline under SD1.5's original names."""
    per_level = pipeline.unet.config.layers_per_block
    tensors = {f"model.diffusion_model.{_unet_key(k, per_level)}": v for k, v in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        is_attention = "mid_block.attentions.0.to_" in key and key.endswith("weight")
        tensors[f"first_stage_model.{_vae_key(key)}"] = value[:, :, None, None] if is_attention else value
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {key: value.contiguous() for key, value in tensors.items()}


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet_key(key: str, per_level: int) -> str:
    for name, original in _UNET_ENDS.items():
        if key.startswith(f"{name}."):
            return key.replace(name, original, 1)
    part, rest = key.split("_block", 1)
    if part == "mid":
        kind, index, inner = re.fullmatch(r"\.(\w+)\.(\d)\.(.+)", rest).groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{_inner(kind, inner)}"
    level, kind, index, inner = re.fullmatch(r"s\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest).groups()
    level, index = int(level), int(index)
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (per_level + 1)}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (per_level + 1) + per_level}.{1 if level == 0 else 2}.{inner}"
    block = f"input_blocks.{1 + level * (per_level + 1) + index}"
    if part == "up":
        block = f"output_blocks.{level * (per_level + 1) + index}"
    return f"{block}.{1 if kind == 'attentions' else 0}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    if kind != "resnets":
        return inner
    name, suffix = inner.split(".", 1)
    return f"{_RESNET[name]}.{suffix}"


def _vae_key(key: str) -> str:
    levels = 4
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", key)
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", key)
    key = key.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample")
    key = key.replace("mid_block.block.0", "mid.block_1").replace("mid_block.block.1", "mid.block_2")
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = re.sub(r"to_(q|k|v)\.", r"\1.", key).replace("to_out.0", "proj_out")
    return key


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (save_single_file if target.suffix == ".safetensors" else save_folder)(target)
