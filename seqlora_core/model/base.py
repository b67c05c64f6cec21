"""Base models for the command line: an SD1.5 checkpoint in one file or a diffusers folder, loaded with diffusers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import mini
from ..data.words import NO_WORDS, Words
from ..devices import check_dtype, resolve_device
from ..errors import UserError, first_line
from ..hashing import digest, fingerprint
from .architecture import Architecture, BaseIdentity
from .denoiser import DiffusersDenoiser
from .diffusers_folder import check_folder
from .sd15 import SD15, LayerShape, find_layers, layer_shapes, unsupported_kind
from .single_file import load_single_file
from .text_encoder import CLIPTextEncoder

ARCHITECTURES = {architecture.pipeline: architecture for architecture in (SD15,)}  # by diffusers pipeline class
LARGEST_SIDE = 16384  # px; that of ComfyUI


@dataclass
class Base:
    """A loaded base model.

    Attributes:
        pipeline: a diffusers `StableDiffusionPipeline`, frozen, on `device`.
        identity: tells the base apart from others by its attention weights.
        layers: the widths of all adaptable layers, by canonical name.
        device: where the pipeline runs.
        architecture: the family that the base belongs to.
    """

    pipeline: Any
    identity: BaseIdentity
    layers: dict[str, LayerShape]
    device: torch.device
    architecture: Architecture

    @property
    def vae_scale_factor(self) -> int:
        """Image px per latent px."""
        return self.pipeline.vae_scale_factor

    @property
    def native_size(self) -> int:
        """The side, in px, of the images that the base was trained on."""
        return self.pipeline.unet.config.sample_size * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """The number of px that an image's sides must be multiples of, so that every UNet level halves evenly."""
        return self.vae_scale_factor * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    def denoiser(self) -> DiffusersDenoiser:
        """Return the UNet as the trainer uses it."""
        return DiffusersDenoiser(self.pipeline.unet, self.pipeline.scheduler.alphas_cumprod, self.architecture)

    def rendering_fingerprint(self) -> str:
        """Hash everything that decides the base's images; `identity` covers the attention weights only."""
        scheduler = self.pipeline.scheduler
        schedule = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        weights = self._fingerprint("unet", "vae", "text_encoder")
        return digest([weights, type(scheduler).__name__, schedule, self.pipeline.tokenizer.get_vocab()])

    def encoding_fingerprint(self) -> str:
        """Hash everything that decides how images and prompts are encoded, except rounding."""
        weights, vae = self._fingerprint("vae", "text_encoder"), self.pipeline.vae.config
        return digest([weights, vae.scaling_factor, self.pipeline.tokenizer.get_vocab()])

    def _fingerprint(self, *names: str) -> str:
        modules = {name: getattr(self.pipeline, name) for name in names}
        return fingerprint(
            {f"{name}.{key}": w for name, module in modules.items() for key, w in module.state_dict().items()}
        )

    def check_resolution(self, pixels: int) -> None:
        """Raise UserError if an image with a side of `pixels` px is too large, or the UNet cannot halve it evenly."""
        if pixels > LARGEST_SIDE:
            raise UserError(f"The size must be at most {LARGEST_SIDE} pixels: lower it.")
        if pixels % self.size_multiple:
            raise UserError(f"The size must be a multiple of {self.size_multiple} pixels for this base, not {pixels}.")

    @property
    def text_encoder(self) -> CLIPTextEncoder:
        """The text encoder with its tokenizer."""
        return CLIPTextEncoder(self.pipeline.tokenizer, self.pipeline.text_encoder)

    def encode_prompt(self, prompt: str, words: Words = NO_WORDS) -> Tensor:
        """Return the text embedding of a prompt, [tokens, d] float32 on the CPU."""
        return self.text_encoder.encode_all([prompt], words)[0]

    def encode_words(self, words: str, after: str = "", learned: Words = NO_WORDS) -> Tensor:
        """Return the embeddings of `words` and the end token in the prompt "`after` `words`": [t, d] float32, CPU.

        Args:
            learned: the vectors of learned words.
        """
        encoder, prompt = self.text_encoder, f"{after} {words}".strip()
        first = encoder.count_tokens(after, learned) - 1  # the start token, and those of `after`
        return self.encode_prompt(prompt, learned)[first : encoder.count_tokens(prompt, learned)]

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images with the VAE.

        Args:
            pixels: [N, 3, H, W] in -1..1.

        Returns:
            The posterior's mean and standard deviation, both [N, 4, h, w] float32 on the CPU and multiplied by the
            VAE's scaling factor.
        """
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return (posterior.mean * scale).float().cpu(), (posterior.std * scale).float().cpu()


def load_base(base: str, device: str = "auto", dtype: str = "float32", tokenizer: str | None = None) -> Base:
    """Load a base model, frozen.

    Args:
        base: "mini" (the shipped one), a `.safetensors` checkpoint in SD1.5's original layout, or a diffusers folder.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        dtype: of the UNet's frozen weights; VAE and text encoder stay in float32.
        tokenizer: a folder with CLIP's tokenizer, for single files on machines without a network.

    Raises:
        UserError: there is no such base, it is not an SD1.5 model (the message names the kind), or the device is not
            available or cannot train in that precision.
    """
    target = resolve_device(device)
    check_dtype(target, dtype)
    path = mini.base_folder() if base == "mini" else Path(base)
    if path.is_dir():
        pipeline = _load_folder(path)
    elif path.is_file():
        pipeline = load_single_file(path, tokenizer)
    else:
        raise UserError(
            f"There is no base model at {base}: give mini, a .safetensors checkpoint or a diffusers folder."
        )
    architecture = ARCHITECTURES[type(pipeline).__name__]
    if problem := unsupported_kind(pipeline.unet.config, pipeline.scheduler.config.prediction_type):
        raise UserError(f"{base} is {problem}, which SeqLoRA cannot train on: give a Stable Diffusion 1.5 base.")
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    _check_finite(parts, f"{base} holds", "the file is damaged, so download it again")
    layers = find_layers(pipeline.unet)
    identity = BaseIdentity(
        mini.NAME if base == "mini" else path.stem, fingerprint({name: layer.weight for name, layer in layers.items()})
    )
    # The fingerprint needs the weights as published; a card that holds the final precision may not hold float32.
    whole = ((module, torch.float32) for module in (pipeline.vae, pipeline.text_encoder))
    for module, precision in ((pipeline.unet, getattr(torch, dtype)), *whole):
        module.requires_grad_(False).eval().to(target, precision)
    if dtype == "float16":
        _check_finite({"unet": pipeline.unet}, f"In float16, {base} has", "use --dtype float32")
    return Base(pipeline, identity, layer_shapes(layers), target, architecture)


def _check_finite(modules: Mapping[str, torch.nn.Module], subject: str, advice: str) -> None:
    """Raise UserError, with the weight's name, where a weight is NaN or infinite."""
    for part, module in modules.items():
        for name, weight in module.state_dict().items():
            largest = torch.linalg.vector_norm(weight, math.inf) if weight.is_floating_point() else 0.0
            if not math.isfinite(largest):
                raise UserError(f"{subject} numbers that are not finite in {part}.{name}: {advice}.")


def _load_folder(path: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(f"{path} is not a diffusers folder (it has no model_index.json): give another base model.")
    try:
        kind = StableDiffusionPipeline.load_config(path).get("_class_name")
        if kind not in ARCHITECTURES:
            raise UserError(f"{path} holds a {kind}, not a Stable Diffusion 1.5 pipeline: give an SD1.5 base.")
        check_folder(path)
        return StableDiffusionPipeline.from_pretrained(
            path,
            variant=_only_variant(path / "unet"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            local_files_only=True,
        )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"The diffusers folder {path} cannot be loaded: {first_line(error)}") from error


def _only_variant(folder: Path) -> str | None:
    """Return the only variant of a model's weights, such as "fp16"; None if diffusers finds the weights without it."""
    name, ending = "diffusion_pytorch_model", ".safetensors"
    variants = [path.name[len(name) + 1 : -len(ending)] for path in folder.glob(f"{name}.*{ending}")]
    return variants[0] if len(variants) == 1 and not (folder / f"{name}{ending}").is_file() else None
