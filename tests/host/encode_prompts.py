"""Encode prompts with the host's CLIP one by one and as the pack does; print, per case, how they compare, as JSON.

python encode_prompts.py COMFYUI_DIR BASE_DIRECTORY
"""

import gc
import json
import sys
import types
import weakref
from pathlib import Path

COMFYUI, BASE = sys.argv[1:]
sys.path[:0] = [COMFYUI, str(Path(BASE) / "custom_nodes")]
sys.argv[1:] = ["--cpu"]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
import utils.install_util  # noqa: E402, F401  (before the host's nodes put another `utils` on the path)
from safetensors.torch import save_file  # noqa: E402
from seqlora.nodes.host.kept import KEPT, Kept  # noqa: E402
from seqlora.nodes.host.texts import TextEncoder  # noqa: E402

PROMPTS = ["a dog", "a (red:1.4) dog on [grass]", "very " * 100 + "long", "", "a embedding:worn dog", "a dog", ""]
CHECKPOINT = str(Path(BASE) / "models" / "checkpoints" / "small.safetensors")


def load() -> comfy.sd.CLIP:
    """The CLIP of the small checkpoint, which notes how many windows each of its passes has."""
    embeddings = Path(BASE) / "models" / "embeddings"
    embeddings.mkdir(exist_ok=True)
    save_file(
        {"emb_params": torch.randn(2, 768, generator=torch.Generator().manual_seed(0))}, embeddings / "worn.safetensors"
    )
    clip = comfy.sd.load_checkpoint_guess_config(
        CHECKPOINT, output_vae=False, output_clip=True, embedding_directory=[str(embeddings)]
    )[1]
    encoder = clip.cond_stage_model.clip_l
    del encoder.transformer.text_model.encoder.layers[2:]  # which would take minutes
    encoder.num_layers = 2
    encoder.transformer.register_forward_pre_hook(
        lambda _, __, inputs: PASSES.append(len(inputs["embeds"])), with_kwargs=True
    )
    return clip


PASSES: list[int] = []


def compare(clip: comfy.sd.CLIP) -> dict:
    """The passes that the pack needs, and how far its embeddings are from those of one prompt at a time."""
    PASSES.clear()
    made = TextEncoder(clip).encode(PROMPTS)
    passes = list(PASSES)
    with torch.inference_mode():
        single = torch.stack([clip.encode_from_tokens(clip.tokenize(prompt))[0][:77].float() for prompt in PROMPTS])
    return {"passes": passes, "difference": (made - single).abs().max().item(), "shape": list(made.shape)}


def patched(clip: comfy.sd.CLIP, strength: float) -> comfy.sd.CLIP:
    clone = clip.clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    clone.add_patches({key: (torch.ones(3072, 768),)}, strength)
    return clone


def twice(clip: comfy.sd.CLIP, tokens: dict) -> torch.Tensor:
    return comfy.sd.CLIP.encode_from_tokens(clip, tokens) * 2


def main() -> None:
    clip = load()
    skipping = clip.clone()
    skipping.clip_layer(-2)
    doubled, replaced = clip.clone(), clip.clone()
    doubled.encode_from_tokens = types.MethodType(twice, doubled)
    replaced.patcher.add_object_patch("clip_l.transformer.text_model.final_layer_norm", torch.nn.Identity())
    results = {
        "first": compare(clip),
        "again": compare(clip.clone()),
        "patched": compare(patched(clip, 0.01)),
        "patched alike": compare(patched(clip, 0.01)),
        "skipping": compare(skipping),
        "overridden": compare(doubled),
        "original": compare(clip),
        "replaced part": compare(replaced),
    }
    with torch.inference_mode():
        clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.01)
    results["changed in place"] = compare(clip)
    alive = weakref.ref(clip.cond_stage_model)
    del clip, skipping, doubled, replaced
    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models_gc()
    gc.collect()
    small = Kept(limit=1000)
    for number in range(10):
        small.put(str(number), torch.zeros(100))
    results["kept"] = {
        "CLIP is alive": alive() is not None,
        "trainable": not any(KEPT.get(key).is_inference() for key in list(KEPT._tensors)),
        "newest of ten": [str(number) in small for number in range(10)],
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
