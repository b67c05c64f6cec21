"""The host's MODEL: what it must be, its UNet as a denoiser, and patches on it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import comfy.ldm.modules.attention as attention
import comfy.model_management as model_management
import comfy.ops as ops
import torch
from comfy.model_sampling import EPS, V_PREDICTION, X0
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...seqlora_core.bank import BaseIdentity
from ...seqlora_core.errors import UserError
from ...seqlora_core.hashing import fingerprint
from ...seqlora_core.model.adapters import Adapter
from ...seqlora_core.model.sd15 import SD15, LayerShape, find_layers, layer_shapes, module_names

_UNET = "diffusion_model."
_CONCEPTS = "seqlora_concepts"
_TENSORS_OF = ("torch", "comfy", "comfy_kitchen")  # packages; others pack weights for layers of their own


def check_model(model) -> None:
    """Raises UserError where a MODEL is not an epsilon-predicting Stable Diffusion 1.5 with weights to read."""
    inner = model.model
    if (
        not hasattr(inner, "diffusion_model")
        or getattr(inner.model_config, "unet_config", {}).get("context_dim") != SD15.text_width
    ):
        raise UserError("The model is not Stable Diffusion 1.5: connect an SD1.5 checkpoint.")
    for kind in {type(weight) for weight in inner.diffusion_model.parameters()}:
        if kind.__module__.partition(".")[0] not in _TENSORS_OF:
            raise UserError(
                f"Weights packed as {kind.__name__}, as those of GGUF files are, cannot be trained on: load the "
                ".safetensors model."
            )
    sampling = model.get_model_object("model_sampling")  # a node may have replaced it on this MODEL
    if not isinstance(sampling, EPS) or isinstance(sampling, (V_PREDICTION, X0)):
        raise UserError(
            "The model does not predict noise (it is a v-prediction or other variant): connect an SD1.5 one."
        )
    sigmas = sampling.sigmas
    if not torch.equal(sampling.timestep(sigmas).long().cpu(), torch.arange(len(sigmas))):
        raise UserError("The model samples with other timesteps (LCM, for one): connect it before such a node.")
    if inner.diffusion_model.in_channels != SD15.latent_channels:
        raise UserError("The model is an inpainting or editing variant: connect a plain SD1.5 checkpoint.")


def check_no_concepts_attached(model) -> None:
    """Raises UserError where concepts are already on a MODEL: training adds the bank's, and would count them twice."""
    if model.get_attachment(_CONCEPTS):
        raise UserError("The model already carries SeqLoRA concepts: train on the one before Compose Concepts.")


def identify(model, name: str) -> tuple[BaseIdentity, dict[str, LayerShape]]:
    """The base model's identity, from its weights without any patch, under `name`, and the widths of its layers."""
    unet = model.model.diffusion_model
    return BaseIdentity(name, fingerprint(unpatched_weights(model))), layer_shapes(find_layers(unet))


def unpatched_weights(model) -> dict[str, Tensor]:
    """The weights of all adaptable layers as they were loaded, by canonical name."""
    weights, names = as_loaded(model, _UNET), module_names(model.model.diffusion_model)
    return {layer: _autograd_view(weights[f"{_UNET}{name}.weight"]) for layer, name in names.items()}


def as_loaded(patcher, prefix: str | None = None) -> dict[str, Tensor]:
    """What a model of the host holds, by the host's names, without the patches that it may have added to it."""
    return {name: entries[0][0] for name, entries in patcher.get_key_patches(prefix).items()}  # patches come after


class HostDenoiser:
    """The UNet that the graph holds, with whatever patches MODEL carries, as the core's `Denoiser`.

    Other LoRAs are part of the frozen model while training; low-precision weights are cast by the host's own layers as
    in sampling, and adapters act beside them.
    """

    architecture = SD15

    def __init__(self, model) -> None:
        self.model = model
        self.unet = model.model.diffusion_model
        self.device = model.load_device
        sigmas = model.get_model_object("model_sampling").sigmas.detach().float().cpu()
        self.alphas_cumprod = (1 / (sigmas.square() + 1)).clone()  # [1000]; the host keeps sigma = sqrt((1 - a) / a)

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        dtype, options = _dtype_of_passes(self.model), {"optimized_attention_override": _differentiable}
        return self.unet(
            noisy.to(dtype), timesteps.float(), context=text.to(dtype), transformer_options=options
        ).float()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """While the block lasts the UNet is on its device, and its weights can take part in a backward pass.

        Other models make room, because the host cannot know what activations and gradients will take.
        """
        # Later hosts may page weights in as layers run, as adapters beside the layers allow; all at once may not fit.
        paged = getattr(self.model, "is_dynamic", lambda: False)()
        with torch.inference_mode():  # as for sampling; moved outside of it, weights would not be what the host made
            model_management.load_models_gpu([self.model], memory_required=1e20, force_full_load=not paged)
        try:
            with _flagged_as_training(), _without_fast_products(self.unet), _lent_weights(self.unet):
                yield
        finally:
            model_management.soft_empty_cache()

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        blocks = [m for m in self.unet.modules() if type(m).__name__ in ("ResBlock", "SpatialTransformer")]
        forwards = [block.forward for block in blocks]

        def recomputed(forward):
            def run(*args, **kwargs):
                return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

            return run

        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = recomputed(forward)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward  # the class's own shows again


def _differentiable(chosen: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Attention by the kernels that the host chose, but for those without a derivative of the order that is asked for.

    Flash and Sage attention, where a user has them, are made for sampling.  Whoever needs a second derivative forbids
    torch's fused kernels (see `hypergradient.exact`), which the host's own choice among them would undo.
    """
    if not (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()):
        chosen = attention.attention_basic
    elif any(kind in getattr(chosen, "__name__", "") for kind in ("flash", "sage")):
        chosen = attention.attention_pytorch
    return chosen(*args, **kwargs)


@contextmanager
def _flagged_as_training() -> Iterator[None]:
    """Later hosts have a flag for their own layers to know that a backward pass will follow."""
    before = getattr(model_management, "in_training", None)
    if before is None:
        yield
        return
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = before


@contextmanager
def _without_fast_products(module: nn.Module) -> Iterator[None]:
    """Puts layers that try to multiply in eight bits into the mode in which they do not.

    That has no derivative, and changes the layer's input in place, which other layers keep for theirs.
    """
    fast = [part for part in module.modules() if isinstance(part, ops.fp8_ops.Linear) and not part.training]
    for part in fast:
        part.training = True
    try:
        yield
    finally:
        for part in fast:
            part.training = False


@contextmanager
def _lent_weights(module: nn.Module) -> Iterator[None]:
    """Lends ordinary weights for those that a backward pass cannot save, or would make gradients for.

    The stand-ins share the memory of the originals, which are put back untouched.
    """
    lent: list[tuple[dict, str, Tensor, Tensor]] = []
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (view := _autograd_view(tensor)) is not tensor:
                    lent.append((tensors, name, tensor, view))
    try:
        for tensors, name, tensor, view in lent:
            tensors[name] = nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
        yield
    finally:
        for tensors, name, tensor, _ in lent:
            tensors[name] = tensor


def _autograd_view(tensor: Tensor) -> Tensor:
    """The tensor, or one in the same memory that can be sliced, saved for a backward pass, and gets no gradient.

    Weights made in inference mode have no version counter, not even after they were moved to a device outside of it, as
    other trainers do.
    """
    try:
        if tensor._version >= 0 and not tensor.requires_grad:
            return tensor
    except RuntimeError:
        pass
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """The host runs nodes in inference mode; training needs tensors that remember how they came about."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def training_dtype(model) -> str:
    """The precision of the passes: on a graphics card the best it is good at, elsewhere what the host computes in."""
    device = model.load_device
    if device.type != "cuda":
        return {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(_dtype_of_passes(model), "float32")
    if model_management.should_use_bf16(device):
        return "bfloat16"
    return "float16" if model_management.should_use_fp16(device) else "float32"


def _dtype_of_passes(model) -> torch.dtype:
    return model.model.manual_cast_dtype or model.model.get_dtype()


def other_patches(model, clip) -> list[object]:
    """What a training depends on besides the base and the pictures: LoRAs on MODEL and CLIP, and the layer of CLIP."""
    patches = [
        (key, strength, patch, of_weight)
        for patcher in (model, clip.patcher)
        for key in sorted(patcher.patches, key=str)
        for strength, patch, of_weight, *_ in patcher.patches[key]
    ]
    return [clip.layer_idx, *patches]


def apply_adapters(model, adapters: Mapping[str, Adapter]):
    """MODEL with one patch a layer; the given MODEL is not changed.

    Raises:
        UserError: a layer is not there, or has another shape.
    """
    unet = model.model.diffusion_model
    own, shapes = module_names(unet), layer_shapes(find_layers(unet))
    patches = {}
    for layer, adapter in adapters.items():
        if shapes.get(layer) != LayerShape(*adapter.widths):
            raise UserError(f"The model has no layer {layer} of the concept's shape: connect the bank's base model.")
        patches[f"{_UNET}{own[layer]}.weight"] = LoRAAdapter(
            set(), (adapter.up, adapter.down.contiguous(), None, None, None, None)
        )
    patched = model.clone()
    patched.set_attachments(_CONCEPTS, True)
    applied = patched.add_patches(patches, 1.0)
    if len(applied) != len(patches):
        raise UserError(f"{len(patches) - len(applied)} layers of the model did not take the patch.")
    return patched
