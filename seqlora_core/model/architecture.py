"""What the code must know about a family of base models, in one record per family."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """The constants of one family of base models.

    Layer patterns match a layer's canonical name: its path in diffusers' `UNet2DConditionModel`.

    Attributes:
        name: as messages spell it.
        pipeline: class of the diffusers pipeline, which a folder's `model_index.json` names.
        latent_channels: channels of the VAE's latents.
        vae_scale_factor: image px per latent px.
        latent_scaling: factor by which the VAE's latents are multiplied.
        native_size: side of the images that the family was trained on, in px.
        text_width: width of the published model's text embeddings; finetunes have the same.
        prompt_tokens: length of an encoded prompt, including the start and end tokens.
        attention_heads: heads of every attention layer of the UNet.
        presets: preset -> pattern of the layers that it adapts; each pattern matches the end of a canonical name.
        self_attention: pattern of the layers that share one input per attention block; group 1 is the block.
        text_layer: pattern of the layers that receive the text embeddings.
        kohya_layer: pattern of a layer in the keys of kohya's LoRA files, with the groups that `lora_file` reassembles.
        kohya_version: `ss_base_model_version` in the header of kohya's LoRA files.
        modelspec: `modelspec.architecture` in the header of LoRA files.
    """

    name: str
    pipeline: str
    latent_channels: int
    vae_scale_factor: int
    latent_scaling: float
    native_size: int
    text_width: int
    prompt_tokens: int
    attention_heads: int
    presets: Mapping[str, str]
    self_attention: re.Pattern
    text_layer: re.Pattern
    kohya_layer: re.Pattern
    kohya_version: str
    modelspec: str


@dataclass(frozen=True)
class BaseIdentity:
    """The base model that a bank belongs to.

    Attributes:
        name: for people; two names may stand for the same weights.
        fingerprint: of the adaptable layers' weights (see `hashing.fingerprint`); decides whether a bank fits.
    """

    name: str
    fingerprint: str
