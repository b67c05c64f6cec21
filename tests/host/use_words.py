"""Teach words to the host's CLIP, use and differentiate them; print what comes of each case, as JSON.

python use_words.py COMFYUI_DIR BASE_DIRECTORY
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

COMFYUI, BASE = sys.argv[1:]
sys.path[:0] = [COMFYUI, str(Path(BASE) / "custom_nodes")]
sys.argv[1:] = ["--cpu"]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
import utils.install_util  # noqa: E402, F401  (before the host's nodes put another `utils` on the path)
from safetensors.torch import load_file, save_file  # noqa: E402
from seqlora.nodes.host.text_encoder import HostTextEncoder  # noqa: E402
from seqlora.nodes.host.words import knowing_words, known_words  # noqa: E402
from seqlora.seqlora_core.model.text_encoder import text_fingerprint  # noqa: E402

CHECKPOINT = Path(BASE) / "models" / "checkpoints" / "small.safetensors"
WORDS = {name: torch.randn(2, 768) for name in ("sksdog", "sksdog2", "<cat>")}
# With the plain words, and with the same vectors as stock embeddings.
PAIRS = {
    "plain": ("sksdog on a beach", "embedding:dog on a beach"),
    "weighted": ("a (sksdog:1.2) on [grass]", "a ( embedding:dog :1.2) on [grass]"),
    "upper case": ("a SksDog", "a embedding:dog"),
    "punctuation": ("a sksdog, running", "a embedding:dog , running"),
    "longest word": ("a sksdog2", "a embedding:dog2"),
    "two words": ("sksdog and <cat>", "embedding:dog and embedding:cat"),
    "beside an embedding": ("sksdog and embedding:cat", "embedding:dog and embedding:cat"),
    "part of a word": ("a sksdogs", "a sksdogs"),
}


def load() -> comfy.sd.CLIP:
    """The CLIP of the small checkpoint, next to files with the words."""
    folder = Path(BASE) / "models" / "embeddings"
    folder.mkdir(exist_ok=True)
    for name, file in (("sksdog", "dog"), ("sksdog2", "dog2"), ("<cat>", "cat")):
        save_file({name: WORDS[name]}, folder / f"{file}.safetensors")
    clip = comfy.sd.load_checkpoint_guess_config(
        str(CHECKPOINT), output_vae=False, output_clip=True, embedding_directory=[str(folder)]
    )[1]
    encoder = clip.cond_stage_model.clip_l
    del encoder.transformer.text_model.encoder.layers[2:]  # which would take minutes
    encoder.num_layers = 2
    return clip


@torch.inference_mode()
def encode(clip: comfy.sd.CLIP, prompt: str) -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize(prompt)).clone()


def difference(clip: comfy.sd.CLIP, other: comfy.sd.CLIP, prompts: tuple[str, str] = PAIRS["plain"]) -> float:
    return (encode(clip, prompts[0]) - encode(other, prompts[1])).abs().max().item()


def changed(clip: comfy.sd.CLIP) -> dict[str, comfy.sd.CLIP]:
    """What nodes after ours make of a CLIP."""
    patched, skipping = clip.clone(), clip.clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    patched.add_patches({key: (0.01 * torch.ones(3072, 768),)}, 1.0)
    skipping.clip_layer(-2)
    return {"cloned": clip.clone(), "patched": patched, "skipping": skipping}


def gradients(clip: comfy.sd.CLIP) -> dict[str, float]:
    """How far the gradient of an embedding by a word's vectors is from a difference quotient, and what it leaves."""
    encoder = HostTextEncoder(clip, SimpleNamespace())
    encoder._model = clip.patcher
    prompts, weights = ["a (sksdog:1.2), sitting", "one sksdog and <cat>"], torch.randn(2, 77, 768)
    with torch.inference_mode(False), torch.enable_grad():
        vectors = WORDS["sksdog"].clone().requires_grad_()

        def value(vectors: torch.Tensor) -> torch.Tensor:
            return (encoder.encode(prompts, {**WORDS, "sksdog": vectors}).double() * weights).sum()

        (gradient,) = torch.autograd.grad(value(vectors), vectors)
        along = gradient / gradient.norm()
        with torch.no_grad():
            quotient = (value(vectors + 0.01 * along) - value(vectors - 0.01 * along)).item() / 0.02
            together = encoder.encode(prompts, WORDS)
    single = torch.cat([encode(knowing_words(clip, WORDS), prompt) for prompt in prompts])
    return {
        "gradient": abs(quotient / gradient.norm().item() - 1),
        "encoded": (together - single).abs().max().item(),
    }


def state(clip: comfy.sd.CLIP) -> list[object]:
    """Everything that a training run could change in a CLIP; the layer is set again by each encoding."""
    encode(clip, "")
    model = clip.cond_stage_model
    weights = [(name, own.double().sum().item(), own.requires_grad) for name, own in model.named_parameters()]
    hooks = sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())
    tokenizers = [id(clip.tokenizer), id(clip.tokenizer.clip_l), id(clip.tokenizer.clip_l.tokenizer)]
    own = [sorted(vars(clip)), clip.layer_idx, clip.tokenizer_options, sorted(clip.patcher.patches)]
    options = [model.clip_l.layer, model.clip_l.layer_idx]
    return [weights, hooks, tokenizers, own, options]


def main() -> None:
    clip = load()
    before = state(clip)
    knowing = knowing_words(clip, WORDS)
    skipping = clip.clone()
    skipping.clip_layer(-2)
    results = {
        "pairs": {name: difference(knowing, clip, pair) for name, pair in PAIRS.items()},
        "after": {name: difference(own, changed(clip)[name]) for name, own in changed(knowing).items()},
        "chain": sorted(known_words(knowing_words(knowing_words(clip, {"a": WORDS["<cat>"]}), {"A": WORDS["sksdog"]}))),
        "gradients": {name: gradients(own) for name, own in {"plain": clip, "skipping": skipping}.items()},
        "class word": HostTextEncoder(clip, None).vectors_of("dog").shape[0],
        "untouched": state(clip) == before,
        "unknowing": difference(clip, clip, ("a sksdog", "a embedding:dog")),
    }
    whole = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), output_vae=False, output_clip=True)[1]
    file = {name: weight for name, weight in load_file(CHECKPOINT).items() if name.startswith("cond_stage_model.")}
    results["same fingerprint"] = HostTextEncoder(whole, None).fingerprint() == text_fingerprint(file)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
