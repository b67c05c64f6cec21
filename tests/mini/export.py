"""From trained weights to what is shipped (a diffusers folder, the identity network, the concepts' references), and
from there back to weights that a training goes on from."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from .base import CYCLES, Base, load_trained, make_scheduler
from .catalogue import concepts, learned, sprites, things
from .identity import load_trained_identity
from .pictures import SIZE, one_thing
from .vae import load_vae, scaling_factor

REFERENCES = 5


def make_pipeline(work: Path) -> StableDiffusionPipeline:
    """The trained parts as a pipeline, float32."""
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"))
    trained = load_trained(len(tokenizer), work)
    vae = load_vae(work)
    vae.register_to_config(scaling_factor=scaling_factor(work))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=trained.text_encoder,
        tokenizer=tokenizer,
        unet=trained.unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(packages: Path, work: Path, target: Path) -> None:
    """Writes `base/` (float16), `identity.safetensors` (float16) and `concepts/` with `concepts.json`."""
    pipeline = make_pipeline(work)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(target / "base")
    (target / "base" / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)  # transformers 5 alone reads it
    shutil.copytree(work / "tokenizer", target / "base" / "tokenizer", dirs_exist_ok=True)
    _name_as_all_versions_do(target / "base" / "text_encoder" / "model.safetensors")
    weights = {name: tensor.half() for name, tensor in load_trained_identity(work).state_dict().items()}
    save_file(weights, target / "identity.safetensors", {"format": "pt"})
    _export_references(sprites(packages), target)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The base of a mini folder, float32."""
    return StableDiffusionPipeline.from_pretrained(folder / "base", torch_dtype=torch.float32, local_files_only=True)


def adopt(folder: Path, work: Path) -> None:
    """Writes the weights of a mini folder as the stages vae, identity and base would have: the last cycle is left to
    train. Does nothing where that has been done."""
    last = work / f"base{len(CYCLES) - 1}.pt"
    if last.exists():
        return
    pipeline = load_pipeline(folder)
    shutil.copytree(folder / "base" / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    base = Base(len(pipeline.tokenizer))
    base.unet.load_state_dict(pipeline.unet.state_dict())
    base.text_encoder.load_state_dict(pipeline.text_encoder.state_dict())
    identity = {name: tensor.float() for name, tensor in load_file(folder / "identity.safetensors").items()}
    (work / "scaling.json").write_text(json.dumps(pipeline.vae.config.scaling_factor), "utf-8")
    torch.save({"average": pipeline.vae.state_dict()}, work / "vae.pt")
    torch.save({"average": identity}, work / "identity.pt")
    torch.save({"average": base.state_dict()}, last)


def _name_as_all_versions_do(path: Path) -> None:
    """transformers 5 writes CLIPTextModel's weights without the prefix `text_model.`, without which transformers 4
    starts from random weights and only warns; both read the names with it."""
    weights = load_file(path)
    save_file({f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}, path, {"format": "pt"})


def _export_references(looks: np.ndarray, target: Path) -> None:
    """A strip of reference pictures a concept, all in the first vendor's look."""
    folder = target / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, thing in enumerate(concepts()):
        index = len(learned()) + number
        own_look = looks[:, :1]
        pictures = [one_thing(np.random.default_rng([3, index, i]), own_look, index)[0] for i in range(REFERENCES)]
        file = f"{thing.name.replace(' ', '-')}.png"
        Image.fromarray(np.concatenate(pictures, axis=1)).save(folder / file, optimize=True)
        records.append({"name": thing.name, "class_word": thing.class_word, "file": file})
    record = {"size": SIZE, "learned": [thing.name for thing in things() if not thing.class_word], "concepts": records}
    (target / "concepts.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
