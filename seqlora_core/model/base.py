"""Base models for the command line: a single-file SD1.5 checkpoint or a diffusers folder, loaded with diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import mini
from ..bank.manifest import BaseIdentity
from ..devices import check_dtype, resolve_device
from ..errors import UserError
from ..hashing import digest, fingerprint
from .denoiser import DiffusersDenoiser
from .diffusers_folder import check_folder
from .sd15 import LayerShape, find_layers, layer_shapes
from .single_file import load_single_file


@dataclass
class Base:
    """A loaded base model.

    Attributes:
        pipeline: a diffusers `StableDiffusionPipeline`, frozen, on `device`.
        layers: widths of all layers that can be adapted, by canonical name.
    """

    pipeline: Any
    identity: BaseIdentity
    layers: dict[str, LayerShape]
    device: torch.device

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels a latent pixel."""
        return self.pipeline.vae_scale_factor

    @property
    def native_size(self) -> int:
        """The side, in pixels, of the images that the base was made for."""
        return self.pipeline.unet.config.sample_size * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """An image's sides must be multiples of this many pixels, so that every level of the UNet halves evenly."""
        return self.vae_scale_factor * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    def denoiser(self) -> DiffusersDenoiser:
        """The UNet for the trainer."""
        return DiffusersDenoiser(self.pipeline.unet, self.pipeline.scheduler.alphas_cumprod)

    def appearance(self) -> str:
        """A hash of all that decides its pictures; its identity tells attention weights apart alone."""
        scheduler = self.pipeline.scheduler
        schedule = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        weights = self._fingerprint("unet", "vae", "text_encoder")
        return digest([weights, type(scheduler).__name__, schedule, self.pipeline.tokenizer.get_vocab()])

    def encoding(self) -> str:
        """A hash of all that decides what images and prompts are encoded as, but for rounding."""
        weights, vae = self._fingerprint("vae", "text_encoder"), self.pipeline.vae.config
        return digest([weights, vae.scaling_factor, self.pipeline.tokenizer.get_vocab()])

    def _fingerprint(self, *parts: str) -> str:
        modules = {part: getattr(self.pipeline, part) for part in parts}
        return fingerprint(
            {f"{part}.{key}": w for part, module in modules.items() for key, w in module.state_dict().items()}
        )

    def check_resolution(self, pixels: int) -> None:
        """Raises UserError where the UNet cannot halve an image of that side evenly."""
        if pixels % self.size_multiple:
            raise UserError(f"The size must be a multiple of {self.size_multiple} pixels for this base, not {pixels}.")

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """[tokens, d] float32 on the CPU."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        ids = tokenizer(
            prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        return encoder(ids.to(self.device))[0][0].float().cpu()

    def encode_words(self, words: str, after: str = "") -> Tensor:
        """[tokens, d] float32 on the CPU, of words up to and with the end token, as they stand after other ones."""
        tokenizer = self.pipeline.tokenizer
        first = len(tokenizer(after).input_ids) - 1  # the start token, and those of `after`
        prompt = f"{after} {words}".strip()
        return self.encode_prompt(prompt)[first : len(tokenizer(prompt).input_ids)]

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation [N, 4, h, w], scaled, float32, CPU, of images [N, 3, H, W] in -1..1."""
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return (posterior.mean * scale).float().cpu(), (posterior.std * scale).float().cpu()


def load_base(base: str, device: str = "auto", dtype: str = "float32", tokenizer: str | None = None) -> Base:
    """Load a base model, frozen.

    Args:
        base: "mini" (the one that is shipped), a `.safetensors` checkpoint in SD1.5's original layout, or a diffusers
            folder.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        dtype: of the UNet's frozen weights; VAE and text encoder stay in float32.
        tokenizer: a folder with CLIP's tokenizer, for single files on machines without network.

    Raises:
        UserError: it is not there, is no SD1.5 model (says what it is), or the device cannot do this.
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
    _check_supported(pipeline, base)
    layers = find_layers(pipeline.unet)
    identity = BaseIdentity(
        "mini" if base == "mini" else path.stem, fingerprint({name: layer.weight for name, layer in layers.items()})
    )
    # After the fingerprint, which looks at the weights as published, and straight to the precision that stays.
    whole = ((module, torch.float32) for module in (pipeline.vae, pipeline.text_encoder))
    for module, precision in ((pipeline.unet, getattr(torch, dtype)), *whole):
        module.requires_grad_(False).eval().to(target, precision)
    return Base(pipeline, identity, layer_shapes(layers), target)


def _load_folder(path: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(f"{path} is not a diffusers folder (it has no model_index.json): give another base model.")
    try:
        kind = StableDiffusionPipeline.load_config(path).get("_class_name")
        if kind != "StableDiffusionPipeline":
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
        raise UserError(f"The diffusers folder {path} cannot be loaded: {_first_line(error)}") from error


def _only_variant(folder: Path) -> str | None:
    """The one variant, such as "fp16", that a model's weights are there in; None where diffusers needs no telling."""
    name, ending = "diffusion_pytorch_model", ".safetensors"
    variants = [path.name[len(name) + 1 : -len(ending)] for path in folder.glob(f"{name}.*{ending}")]
    return variants[0] if len(variants) == 1 and not (folder / f"{name}{ending}").is_file() else None


def _check_supported(pipeline: Any, base: str) -> None:
    unet = pipeline.unet.config
    problem = None
    if unet.in_channels == 9:
        problem = "an inpainting model"
    elif unet.in_channels != 4:
        problem = f"a model with {unet.in_channels} input channels"
    elif unet.addition_embed_type is not None:
        problem = "an SDXL model"
    elif unet.use_linear_projection or unet.cross_attention_dim == 1024:
        problem = "a Stable Diffusion 2.x model"
    elif pipeline.scheduler.config.prediction_type != "epsilon":
        problem = f"a model with {pipeline.scheduler.config.prediction_type} prediction"
    if problem:
        raise UserError(f"{base} is {problem}, which SeqLoRA cannot train on: give a Stable Diffusion 1.5 base.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
