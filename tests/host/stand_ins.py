"""Custom nodes for the tests: what other machines, other nodes and mistakes do to a graph."""

import copy

import comfy.ldm.modules.attention as attention
import comfy.ops
import torch


class Anything(str):
    """A type that fits every input, as nodes for switches and loops have it."""

    def __ne__(self, other) -> bool:
        return False


class UnusableVae:
    """A VAE that fails, to see what happens before anything is encoded."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"vae": ("VAE",)}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, vae):
        vae = copy.copy(vae)
        vae.encode = self.encode
        return (vae,)

    def encode(self, pixels):
        raise RuntimeError("a picture was encoded")


class Nothing:
    """What loaders give of a file that lacks a part, and what is left of a list that was filtered."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = (Anything("*"), "IMAGE", Anything("*"))
    OUTPUT_IS_LIST = (False, True, True)
    FUNCTION = "give"
    CATEGORY = "tests"

    def give(self):
        return (None, [], [])


class WideTexts:
    """A CLIP whose texts are twice as wide, as those of other models are wider."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",)}})
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, clip):
        clip = clip.clone()
        encode = clip.encode_from_tokens
        clip.encode_from_tokens = lambda tokens: torch.cat([encode(tokens)] * 2, dim=-1)
        return (clip,)


class MovedWeights:
    """Weights in the state that the host leaves them in where it moves them to a graphics card for a training."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "move"
    CATEGORY = "tests"

    def move(self, model):
        with torch.inference_mode(False):
            model.model.diffusion_model._apply(lambda tensor: tensor.clone())
        return (model,)


class GGMLTensor(torch.Tensor):
    """As packs for GGUF files call theirs."""


class QuantizedTensor(torch.Tensor):
    """As later hosts call theirs."""

    __module__ = "comfy.quant_ops"


class PackedWeights:
    """Weights of a kind of tensor that others than torch have made."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "by_host": ("BOOLEAN",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "pack"
    CATEGORY = "tests"

    def pack(self, model, by_host):
        kind = QuantizedTensor if by_host else GGMLTensor
        for part in model.model.diffusion_model.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight = torch.nn.Parameter(part.weight.as_subclass(kind), requires_grad=False)
        return (model,)


def plain_layer(layer: torch.nn.Linear) -> None:
    layer.__class__ = comfy.ops.fp8_ops.Linear


def scaled_layer(layer: torch.nn.Linear) -> None:
    layer.__class__ = comfy.ops.scaled_fp8_ops(fp8_matrix_mult=True).Linear
    layer.scale_weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)


class EightBitProducts:
    """Layers as a host makes them on a graphics card that multiplies in eight bits, where a user asks for that.

    Some multiply so in layers that are not in training mode.  The host leaves the UNet in it, but some nodes do not.
    """

    KINDS = ("plain", "scaled") if hasattr(comfy.ops, "scaled_fp8_ops") else ("plain",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "kind": (cls.KINDS,)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, model, kind):
        for part in model.model.diffusion_model.modules():
            if isinstance(part, comfy.ops.manual_cast.Linear):
                (scaled_layer if kind == "scaled" else plain_layer)(part)
                part.reset_parameters()
        model.model.diffusion_model.eval()
        return (model,)


@attention.wrap_attn
def attention_flash(*args, **kwargs):
    """Without a derivative, as the host's own of that name."""
    with torch.no_grad():
        return attention.attention_pytorch(*args, **kwargs)


class SamplingAttention:
    """Gives the host another attention, or takes it away again."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"on": ("BOOLEAN",)}})
    RETURN_TYPES = ()
    FUNCTION = "switch"
    CATEGORY = "tests"
    OUTPUT_NODE = True
    before = attention.optimized_attention

    def switch(self, on):
        attention.optimized_attention = attention_flash if on else SamplingAttention.before
        return ()


class Captioner:
    """One text for each picture."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",)}})
    RETURN_TYPES = ("STRING",)
    FUNCTION = "describe"
    CATEGORY = "tests"

    def describe(self, image):
        return (f"skscat cat,\n{image.shape[2]} wide",)


class Switch:
    """A text through an output of any type."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING",)}})
    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "give"
    CATEGORY = "tests"

    def give(self, text):
        return (text,)


class RegionBoxes:
    """Says which regions arrive, and in which boxes."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"regions": ("SEQLORA_REGIONS",)}})
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, regions):
        return {"ui": {"regions": [[region.prompt, *region.area] for region in regions]}}


NODES = (UnusableVae, Nothing, WideTexts, MovedWeights, PackedWeights, EightBitProducts)
NODES += (SamplingAttention, Captioner, Switch, RegionBoxes)
NODE_CLASS_MAPPINGS = {f"Tests{node.__name__}": node for node in NODES}
