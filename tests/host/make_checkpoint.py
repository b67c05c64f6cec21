"""A small random checkpoint that ComfyUI takes for Stable Diffusion 1.5, and a ControlNet of its shape; run with the
host's interpreter and checkout.

python make_checkpoint.py COMFYUI_DIR CHECKPOINT.safetensors CONTROLNET.safetensors
"""

import sys

sys.path.insert(0, sys.argv[1])
CHECKPOINT, CONTROLNET = sys.argv[2:]
sys.argv[1:] = ["--cpu"]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

WIDTH, HIDDEN, LAYERS, VOCABULARY = 768, 3072, 12, 49408
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": WIDTH,
}


def sane(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Weights that keep activations finite: norms are the identity, the rest scale with their inputs."""
    if tensor.ndim == 0:  # the autoencoder's scale and shift
        return tensor.detach()
    if tensor.ndim == 1:
        return torch.ones_like(tensor) if "norm" in name and name.endswith("weight") else torch.zeros_like(tensor)
    return torch.randn(tensor.shape) / tensor[0].numel() ** 0.5


def unet() -> dict[str, torch.Tensor]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    return sane_weights(
        UNetModel(**UNET, out_channels=4, transformer_depth_output=[1, 1, 1, 1], operations=disable_weight_init)
    )


def controlnet() -> dict[str, torch.Tensor]:
    """One whose zero convolutions are not zero, so that it acts."""
    from comfy.cldm.cldm import ControlNet

    return sane_weights(ControlNet(**UNET, hint_channels=3))


def sane_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    norms = {name for name, part in model.named_modules() if isinstance(part, (torch.nn.GroupNorm, torch.nn.LayerNorm))}
    return {
        name: sane(f"norm.{name}" if name.rsplit(".", 1)[0] in norms else name, value)
        for name, value in model.state_dict().items()
    }


def text_model() -> dict[str, torch.Tensor]:
    shapes = {
        "embeddings.token_embedding.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embedding.weight": (77, WIDTH),
        "final_layer_norm.weight": (WIDTH,),
        "final_layer_norm.bias": (WIDTH,),
    }
    for index in range(LAYERS):
        layer = f"encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (WIDTH,), f"{layer}.{norm}.bias": (WIDTH,)}
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}.self_attn.{projection}.weight": (WIDTH, WIDTH)}
            shapes |= {f"{layer}.self_attn.{projection}.bias": (WIDTH,)}
        shapes |= {f"{layer}.mlp.fc1.weight": (HIDDEN, WIDTH), f"{layer}.mlp.fc1.bias": (HIDDEN,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (WIDTH, HIDDEN), f"{layer}.mlp.fc2.bias": (WIDTH,)}
    return {name: sane(name, torch.empty(shape)) for name, shape in shapes.items()}


def main() -> None:
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    tensors = {f"model.diffusion_model.{name}": value for name, value in unet().items()}
    tensors |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text_model().items()}
    tensors |= {f"first_stage_model.{name}": sane(name, value) for name, value in TAESD().state_dict().items()}
    for path, weights in ((CHECKPOINT, tensors), (CONTROLNET, controlnet())):
        save_file({name: value.half().contiguous() for name, value in weights.items()}, path)


if __name__ == "__main__":
    main()
