"""Pieces of graphs in API format, and what the host says of them, shared by the tests of the nodes."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

SETTINGS = {"rank": 2, "steps": 3, "resolution": 128, "method": "seqlora", "seed": 0, "on_existing": "error"}


def loader() -> dict:
    return {"base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "small.safetensors"}}}


def unet_alone(host, dtype: str = "default") -> dict:
    """Another copy of the loader's UNet."""
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    if not (folder / "small.safetensors").exists():
        (folder / "small.safetensors").hardlink_to(host.folder / "models" / "checkpoints" / "small.safetensors")
    return {"class_type": "UNETLoader", "inputs": {"unet_name": "small.safetensors", "weight_dtype": dtype}}


def part_of_checkpoint(host, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of the loader's CLIP or VAE, under the names of files that hold it alone."""
    weights = load_file(host.folder / "models" / "checkpoints" / "small.safetensors")
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def training(subject: str, **changes) -> dict:
    return {
        f"photo-{subject}": {"class_type": "LoadImage", "inputs": {"image": f"{subject}.jpg"}},
        f"train-{subject}": {
            "class_type": "SeqLoRATrainConcept",
            "inputs": {
                **{"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "images": [f"photo-{subject}", 0]},
                **{"bank_name": "pets", "concept_name": subject, "token": f"sks{subject}", "class_word": subject},
                **SETTINGS,
                "alpha": 0.02,
                **changes,
            },
        },
    }


def picture(model: list, name: str) -> dict:
    return {
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": "a sksdog dog"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": model, "positive": ["words", 0], "negative": ["words", 0], "latent_image": ["empty", 0]},
                **{"seed": 1, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": name}},
    }


def composed(concepts: str, bank: str = "pets") -> dict:
    return {
        "bank": {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": bank}},
        "compose": {
            "class_type": "SeqLoRAComposeConcepts",
            "inputs": {"model": ["base", 0], "bank": ["bank", 0], "concepts": concepts},
        },
    }


def draw(host, model: list, name: str, nodes: dict | None = None) -> np.ndarray:
    saved = host.run({**loader(), **(nodes or {}), **picture(model, name)})["save"]["images"][0]["filename"]
    return np.asarray(Image.open(host.folder / "output" / saved)).astype(int)


def manifest(host) -> dict:
    return json.loads((host.folder / "models" / "seqlora" / "pets" / "bank.json").read_text("utf-8"))


def text(outputs: dict, node: str) -> str:
    return outputs[node]["text"][0]
