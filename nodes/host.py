"""The adapter to ComfyUI: model folders, the loaded UNet as a denoiser, encoding, patches, progress and Cancel."""

import dataclasses
import inspect
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.model_sampling import EPS, V_PREDICTION, X0
from comfy.weight_adapter import LoRAAdapter
from comfy_api.latest import io
from PIL import Image
from server import PromptServer
from torch import Tensor, nn

from ..seqlora_core.bank import Bank, BaseIdentity
from ..seqlora_core.bank.fingerprint import fingerprint
from ..seqlora_core.bank.names import check_name
from ..seqlora_core.errors import UserError
from ..seqlora_core.examples import Example
from ..seqlora_core.images import fit
from ..seqlora_core.layers import Adapter, LayerShape, find_layers, layer_shapes, module_names
from ..seqlora_core.monitor import Monitor, StepReport
from .pictures import latent_mask, to_image

FOLDER = "seqlora"
_UNET = "diffusion_model."
_LATENT_SCALE = 8
_PROMPT_TOKENS = 77  # the host strings longer prompts together from several such windows
_CONCEPTS = "seqlora_concepts"


def schema(search_aliases: list[str], **fields) -> io.Schema:
    """A node's schema; hosts that do not know search aliases yet refuse them, so they are left out there."""
    if "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}:
        fields["search_aliases"] = search_aliases
    return io.Schema(category="SeqLoRA", **fields)


def advanced(kind: type[io.Input], name: str, **fields) -> io.Input:
    """An input of the advanced section; hosts without one show it among the others, where they refuse the word."""
    if "advanced" in inspect.signature(kind).parameters:
        fields["advanced"] = True
    return kind(name, **fields)


def register_model_folder() -> None:
    """Make `models/seqlora` known; paths that the user configured for it stay, and come first."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def bank_names() -> list[str]:
    """The banks in all `seqlora` model folders."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted({child.name for root in roots if root.is_dir() for child in root.iterdir() if Bank.exists(child)})


def bank_folder(name: str) -> Path:
    """Where a bank of that name lies, or will be made.

    Raises:
        UserError: the name is a path, or empty.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    name = check_name(name, "bank's name")
    return next((root / name for root in roots if Bank.exists(root / name)), roots[0] / name)


def bank_state(name: str | None) -> str:
    """A text that differs after every change of a bank, for the host's cache.

    A name that another node gives is None here, since the host asks before that node runs: then it differs every time.
    """
    if name is None:
        return secrets.token_hex()
    folder = bank_folder(name)
    if not Bank.exists(folder):
        return "no bank"
    manifest = Bank.open(folder).manifest
    return f"{manifest.id}/{manifest.generation}"


def image_folders() -> list[str]:
    """The folders in the host's input folder."""
    root = Path(folder_paths.get_input_directory())
    return sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []


def image_folder(name: str) -> Path:
    """A folder in the host's input folder.

    Raises:
        UserError: there is none of that name.
    """
    if name not in image_folders():
        raise UserError(f"ComfyUI's input folder has no folder {name!r} any more: refresh the list and choose one.")
    return Path(folder_paths.get_input_directory()) / name


def lora_path(name: str) -> Path:
    """Where a LoRA of that name is written, so that stock loaders list it.

    Raises:
        UserError: the name is a path, or empty.
    """
    stem = check_name(name, "file's name")
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{stem}.safetensors"


def lora_files() -> list[str]:
    """What stock LoRA loaders list, without pickles."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_file(name: str) -> Path:
    """The file behind a name of `lora_files`.

    Raises:
        UserError: it is gone.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UserError(f"There is no LoRA file {name} any more: refresh the list and choose one.")
    return Path(path)


def check_model(model) -> None:
    """Raises UserError where a MODEL is not an epsilon-predicting Stable Diffusion 1.5."""
    inner = model.model
    if (
        not hasattr(inner, "diffusion_model")
        or getattr(inner.model_config, "unet_config", {}).get("context_dim") != 768
    ):
        raise UserError("The model is not Stable Diffusion 1.5: connect an SD1.5 checkpoint.")
    sampling = model.get_model_object("model_sampling")  # a node may have replaced it on this MODEL
    if not isinstance(sampling, EPS) or isinstance(sampling, (V_PREDICTION, X0)):
        raise UserError(
            "The model does not predict noise (it is a v-prediction or other variant): connect an SD1.5 one."
        )
    sigmas = sampling.sigmas
    if not torch.equal(sampling.timestep(sigmas).long().cpu(), torch.arange(len(sigmas))):
        raise UserError("The model samples with other timesteps (LCM, for one): connect it before such a node.")
    if inner.diffusion_model.in_channels != 4:
        raise UserError("The model is an inpainting or editing variant: connect a plain SD1.5 checkpoint.")


def check_bare(model) -> None:
    """Raises UserError where concepts are already on a MODEL: training adds the bank's, and would count them twice."""
    if model.get_attachment(_CONCEPTS):
        raise UserError("The model already carries SeqLoRA concepts: train on the one before Compose Concepts.")


def identify(model) -> tuple[BaseIdentity, dict[str, LayerShape]]:
    """The base model's identity, from its weights without any patch, and the widths of its layers."""
    unet = model.model.diffusion_model
    unpatched = model.get_key_patches(_UNET)  # the first entry of each key is the weight as it was loaded
    weights = {layer: unpatched[f"{_UNET}{name}.weight"][0][0] for layer, name in module_names(unet).items()}
    return BaseIdentity("the connected model", fingerprint(weights)), layer_shapes(find_layers(unet))


class HostDenoiser:
    """The UNet that the graph holds, with whatever patches MODEL carries, as the core's `Denoiser`.

    Other LoRAs are part of the frozen model while training; quantized or low-precision weights are cast by the host's
    own layers as in sampling, and adapters act beside them.
    """

    def __init__(self, model) -> None:
        self.model = model
        self.unet = model.model.diffusion_model
        self.device = model.load_device
        sigmas = model.get_model_object("model_sampling").sigmas.detach().float().cpu()
        self.alphas_cumprod = (1 / (sigmas.square() + 1)).clone()  # [1000]; the host keeps sigma = sqrt((1 - a) / a)

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        dtype = _dtype_of_passes(self.model)
        return self.unet(noisy.to(dtype), timesteps.float(), context=text.to(dtype)).float()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """While the block lasts the UNet is on its device, and its weights can take part in a backward pass.

        Other models make room, because the host cannot know what activations and gradients will take.
        """
        # Later hosts may page weights in as layers run, as adapters beside the layers allow; all at once may not fit.
        paged = getattr(self.model, "is_dynamic", lambda: False)()
        model_management.load_models_gpu([self.model], memory_required=1e20, force_full_load=not paged)
        try:
            with _flagged_as_training(), _ordinary_weights(self.unet):
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
def _ordinary_weights(module: nn.Module) -> Iterator[None]:
    """Weights that were made in inference mode cannot be saved for a backward pass; lend them ordinary ones.

    The stand-ins share the memory of the originals, which are put back untouched.
    """
    lent: list[tuple[dict, str, Tensor]] = []
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    lent.append((tensors, name, tensor))
    try:
        for tensors, name, tensor in lent:
            view = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            tensors[name] = nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
        yield
    finally:
        for tensors, name, tensor in lent:
            tensors[name] = tensor


@contextmanager
def ordinary_tensors() -> Iterator[None]:
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
        (key, strength, getattr(patch, "weights", patch), of_weight)
        for patcher in (model, clip.patcher)
        for key in sorted(patcher.patches, key=str)
        for strength, patch, of_weight, *_ in patcher.patches[key]
    ]
    return [clip.layer_idx, *patches]


@torch.no_grad()
def encode(
    model, clip, vae, pictures: list[Image.Image], masks: list[Tensor], prompts: list[tuple[str, ...]], resolution: int
) -> list[Example]:
    """Pictures, masks [H, W] and the prompts of each picture through the host's VAE and CLIP."""
    texts = {prompt: _encode_prompt(clip, prompt) for prompt in dict.fromkeys(p for own in prompts for p in own)}
    examples = []
    for index, (picture, own) in enumerate(zip(pictures, prompts, strict=True)):
        pixels = to_image(fit(picture, resolution, True, _LATENT_SCALE))
        latents = model.model.process_latent_in(vae.encode(pixels)).detach().float().cpu().clone()[0]
        mask = latent_mask(masks[index], resolution, _LATENT_SCALE) if masks else None
        examples.append(Example(latents, torch.stack([texts[prompt] for prompt in own]), mask=mask))
    return examples


def encode_prompts(clip, prompts: list[str]) -> Tensor | None:
    """Embeddings [P, 77, 768] of prompts through the host's CLIP; None for none."""
    return torch.stack([_encode_prompt(clip, prompt) for prompt in prompts]) if prompts else None


def _encode_prompt(clip, prompt: str) -> Tensor:
    windows = clip.encode_from_tokens(clip.tokenize(prompt)).detach().float().cpu()[0]  # [77 a window, 768]
    return windows[:_PROMPT_TOKENS].clone()  # what fits into one, as the command line has it


def apply_adapters(model, adapters: Mapping[str, Adapter]):
    """MODEL with one patch a layer; the given MODEL is not changed.

    Raises:
        UserError: a layer is not there, or has another shape.
    """
    unet = model.model.diffusion_model
    own, shapes = module_names(unet), layer_shapes(find_layers(unet))
    patches = {}
    for layer, (A, B) in adapters.items():
        if shapes.get(layer) != LayerShape(B.shape[0], A.shape[0]):
            raise UserError(f"The model has no layer {layer} of the concept's shape: connect the bank's base model.")
        patches[f"{_UNET}{own[layer]}.weight"] = LoRAAdapter(set(), (A, B.mT.contiguous(), None, None, None, None))
    patched = model.clone()
    patched.set_attachments(_CONCEPTS, True)
    applied = patched.add_patches(patches, 1.0)
    if len(applied) != len(patches):
        raise UserError(f"{len(patches) - len(applied)} layers of the model did not take the patch.")
    return patched


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """The host's VAE draws from torch's global generators: give them a seed, and put back what they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class NodeMonitor(Monitor):
    """Progress bar, preview pictures and text on the node; Cancel ends the training at the next step."""

    def __init__(self, node_id: str | None, model=None) -> None:
        self.node_id = node_id
        self._model = model
        self._bar = None
        self._previewer = None

    def message(self, text: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None and self.node_id is not None:
            server.send_progress_text(text, self.node_id)

    def cancelled(self) -> bool:
        model_management.throw_exception_if_processing_interrupted()  # the host wants its own exception for Cancel
        return False

    def stepped(self, report: StepReport) -> None:
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(report.steps, self.node_id)
        self._bar.update_absolute(report.step, report.steps)
        minutes, seconds = divmod(round(report.seconds_left), 60)
        self.message(f"step {report.step} of {report.steps}, loss {report.loss:.4f}, {minutes}:{seconds:02} left")

    @torch.no_grad()
    def previewed(self, latents: Tensor) -> None:
        if self._previewer is None:
            self._previewer = _latent_previewer(self._model)
        picture = self._previewer.decode_latent_to_preview_image("JPEG", latents)
        self._bar.update_absolute(self._bar.current, preview=picture)


def _latent_previewer(model) -> latent_preview.LatentPreviewer:
    """The host's own, as the user set it; where that is "none" (the default), its cheapest: the node asked for one."""
    latents = model.model.latent_format
    chosen = latent_preview.get_previewer(model.load_device, latents)
    return chosen or latent_preview.Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
