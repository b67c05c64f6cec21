"""The host's MODEL: checking and identifying it, its UNet as a denoiser, and patches on it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import comfy.ldm.modules.attention as attention
import comfy.model_management as model_management
import comfy.ops as ops
import torch
from comfy.model_sampling import EPS, V_PREDICTION, X0
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...seqlora_core.bank import BaseIdentity, Concept
from ...seqlora_core.errors import UserError
from ...seqlora_core.hashing import fingerprint
from ...seqlora_core.model.adapters import Adapter
from ...seqlora_core.model.sd15 import SD15, LayerShape, find_layers, layer_shapes, module_names
from . import CLIP, ModelPatcher

_UNET = "diffusion_model."
_CONCEPTS = "seqlora_concepts"  # attachment of a MODEL: the names of the concepts on it, by id
_TENSORS_OF = ("torch", "comfy", "comfy_kitchen")  # packages; others pack weights for their own layers


def check_model(model: ModelPatcher | None) -> None:
    """Raises UserError where a MODEL is not an epsilon-predicting Stable Diffusion 1.5 with unpacked weights."""
    if model is None:
        raise UserError("No MODEL is on the input model: connect the one of an SD1.5 checkpoint.")
    inner = model.model
    if (
        not hasattr(inner, "diffusion_model")
        or getattr(inner.model_config, "unet_config", {}).get("context_dim") != SD15.text_width
    ):
        raise UserError("The model is not Stable Diffusion 1.5: connect an SD1.5 checkpoint.")
    for kind in {type(weight) for weight in inner.diffusion_model.parameters()}:
        if kind.__module__.partition(".")[0] not in _TENSORS_OF:
            raise UserError(
                f"Weights packed as {kind.__name__}, as in GGUF files, cannot be trained on: load the "
                ".safetensors model."
            )
    sampling = model.get_model_object("model_sampling")  # a node may have replaced it on this MODEL
    if not isinstance(sampling, EPS) or isinstance(sampling, (V_PREDICTION, X0)):
        raise UserError(
            "The model does not predict noise (it is a v-prediction or other variant): connect a plain SD1.5 model."
        )
    sigmas = sampling.sigmas
    if not torch.equal(sampling.timestep(sigmas).long().cpu(), torch.arange(len(sigmas))):
        raise UserError(
            "The model samples with other timesteps (as for LCM): connect it from before the node that changes them."
        )
    if inner.diffusion_model.in_channels != SD15.latent_channels:
        raise UserError("The model is an inpainting or editing variant: connect a plain SD1.5 checkpoint.")


def check_no_concepts_attached(model: ModelPatcher) -> None:
    """Raises UserError where a MODEL already carries concepts: training adds the bank's, which would count twice."""
    if model.get_attachment(_CONCEPTS):
        raise UserError("The model already carries SeqLoRA concepts: connect the model from before Compose Concepts.")


def check_not_attached(model: ModelPatcher, concepts: Iterable[Concept]) -> None:
    """Raises UserError where a MODEL already carries one of these concepts, which would act twice."""
    attached = model.get_attachment(_CONCEPTS) or {}
    for concept in concepts:
        if concept.id in attached:
            raise UserError(
                f"The model already carries the concept {concept.name!r}: leave it out of concepts, or connect the "
                "model from before the node that adds it."
            )


def identify(model: ModelPatcher, name: str) -> tuple[BaseIdentity, dict[str, LayerShape]]:
    """The base model's identity under `name`, from its unpatched weights, and the shapes of its layers."""
    unet = model.model.diffusion_model
    return BaseIdentity(name, fingerprint(unpatched_weights(model))), layer_shapes(find_layers(unet))


def unpatched_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """The weights [out, in] of all adaptable layers as they were loaded, by canonical name."""
    weights, names = as_loaded(model, _UNET), module_names(model.model.diffusion_model)
    return {layer: autograd_view(weights[f"{_UNET}{name}.weight"]) for layer, name in names.items()}


def as_loaded(patcher: ModelPatcher, prefix: str | None = None) -> dict[str, Tensor]:
    """The unpatched weights of a model of the host, by the host's names."""
    return {name: entries[0][0] for name, entries in patcher.get_key_patches(prefix).items()}  # patches come after


class HostDenoiser:
    """The graph's UNet with all patches on MODEL, as the core's `Denoiser`.

    Other LoRAs are part of the frozen model while training.  The host's own layers cast low-precision weights as in
    sampling, and adapters act alongside these layers.
    """

    architecture = SD15

    def __init__(self, model: ModelPatcher) -> None:
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
        """Keep the UNet on its device, with weights that can take part in a backward pass, while the block lasts.

        Other models are moved away, because the host cannot know how much memory activations and gradients take.
        """
        # Later hosts may page weights in as layers run, and the whole UNet may not fit at once.
        paged = getattr(self.model, "is_dynamic", lambda: False)()
        with torch.inference_mode():  # as for sampling; otherwise the host would find other tensors than it made
            model_management.load_models_gpu([self.model], memory_required=1e20, force_full_load=not paged)
        try:
            with _flagged_as_training(), without_fast_products(), lent_weights(self.unet):
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
                del block.forward  # uncovers the class's own


def _differentiable(chosen: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Attention by the kernel that the host chose, except one without a derivative of the required order.

    Flash and Sage attention, where a user has them, are made for sampling.  Code that needs a second derivative forbids
    torch's fused kernels (see `hypergradient.exact`), which the host's own choice would undo.
    """
    if not (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()):
        chosen = attention.attention_basic
    elif any(kind in getattr(chosen, "__name__", "") for kind in ("flash", "sage")):
        chosen = attention.attention_pytorch
    return chosen(*args, **kwargs)


@contextmanager
def _flagged_as_training() -> Iterator[None]:
    """Set the flag of later hosts that announces a backward pass to their own layers."""
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
def without_fast_products() -> Iterator[None]:
    """Make layers that multiply in eight bits cast their weights instead, as they do with inputs that do not fit.

    Such a product has no derivative, and it changes the layer's input in place, which other layers have saved.  Some
    of these layers avoid it in training mode, but not those of scaled weights, and from ComfyUI 0.30 on none.
    """
    product = ops.fp8_linear
    ops.fp8_linear = lambda layer, x: None
    try:
        yield
    finally:
        ops.fp8_linear = product


@contextmanager
def lent_weights(module: nn.Module) -> Iterator[None]:
    """Replace weights that a backward pass cannot save, or would compute gradients for, by ordinary ones.

    The replacements share the memory of the originals, which are put back afterwards.
    """
    lent: list[tuple[dict, str, Tensor, Tensor]] = []
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (view := autograd_view(tensor)) is not tensor:
                    lent.append((tensors, name, tensor, view))
    try:
        for tensors, name, tensor, view in lent:
            tensors[name] = nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
        yield
    finally:
        for tensors, name, tensor, _ in lent:
            tensors[name] = tensor


def autograd_view(tensor: Tensor) -> Tensor:
    """The tensor, or one in the same memory that can be sliced and saved for a backward pass, and gets no gradient.

    Weights made in inference mode have no version counter, not even after they were moved to a device outside it, as
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
    """Leave the inference mode in which the host runs nodes: training needs tensors with a history."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def training_dtype(model: ModelPatcher) -> str:
    """The precision of the passes: a graphics card's fastest safe one, elsewhere the one that the host uses."""
    device = model.load_device
    if device.type != "cuda":
        return {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(_dtype_of_passes(model), "float32")
    if model_management.should_use_bf16(device):
        return "bfloat16"
    return "float16" if model_management.should_use_fp16(device) else "float32"


def _dtype_of_passes(model: ModelPatcher) -> torch.dtype:
    return model.model.manual_cast_dtype or model.model.get_dtype()


def other_patches(model: ModelPatcher, clip: CLIP) -> list[object]:
    """The LoRAs on MODEL and CLIP and the layer of CLIP that is used: a training run depends on them, too."""
    patches = [
        (key, strength, patch, of_weight)
        for patcher in (model, clip.patcher)
        for key in sorted(patcher.patches, key=str)
        for strength, patch, of_weight, *_ in patcher.patches[key]
    ]
    return [clip.layer_idx, *patches]


def patches_off_in_training(model: ModelPatcher) -> list[str]:
    """The nodes or packs whose changes of MODEL act while sampling only, such as FreeU, by the names in their code."""
    options = model.model_options
    transformer = options.get("transformer_options", {})
    found = [patch for own in transformer.get("patches", {}).values() for patch in own]
    found += [patch for own in transformer.get("patches_replace", {}).values() for patch in own.values()]
    found += filter(None, [options.get("model_function_wrapper")])
    names = [getattr(patch, "__qualname__", type(patch).__qualname__) for patch in found]
    return sorted({name.partition(".")[0] for name in names})


def check_fits(model: ModelPatcher, adapters: Mapping[str, Adapter]) -> None:
    """Raises UserError where a layer of the adapters is missing in a MODEL, or has another shape."""
    shapes = layer_shapes(find_layers(model.model.diffusion_model))
    for layer, adapter in adapters.items():
        if shapes.get(layer) != LayerShape(*adapter.widths):
            raise UserError(f"The model has no layer {layer} of the concept's shape: connect the bank's base model.")


def note_concepts(model: ModelPatcher, concepts: Iterable[Concept]) -> None:
    """Note on a MODEL that it carries these concepts."""
    attached = model.get_attachment(_CONCEPTS) or {}
    model.set_attachments(_CONCEPTS, {**attached, **{concept.id: concept.name for concept in concepts}})


def apply_adapters(model: ModelPatcher, adapters: Mapping[str, Adapter], concepts: Iterable[Concept]) -> ModelPatcher:
    """A clone of MODEL with one patch per layer, on which these concepts are noted.

    Raises:
        UserError: a layer is missing, or has another shape.
    """
    check_fits(model, adapters)
    own = module_names(model.model.diffusion_model)
    patches = {
        f"{_UNET}{own[layer]}.weight": LoRAAdapter(
            set(), (adapter.up, adapter.down.contiguous(), None, None, None, None)
        )
        for layer, adapter in adapters.items()
    }
    patched = model.clone()
    note_concepts(patched, concepts)
    applied = patched.add_patches(patches, 1.0)
    if len(applied) != len(patches):
        raise UserError(f"{len(patches) - len(applied)} layers of the model did not take the patch.")
    return patched
