"""The adapter to ComfyUI, the one place that knows its insides."""

from .encoders import (
    encode,
    encode_prompts,
    latent_masks,
    reproducible,
)
from .folders import (
    bank_folder,
    bank_names,
    bank_state,
    folder_state,
    image_folder,
    image_folders,
    lora_file,
    lora_files,
    lora_path,
    lora_state,
    register_model_folder,
    written_lora_state,
)
from .interface import (
    NodeMonitor,
    advanced,
    schema,
    told,
)
from .model import (
    HostDenoiser,
    apply_adapters,
    check_bare,
    check_model,
    identify,
    ordinary_tensors,
    other_patches,
    training_dtype,
)

__all__ = [
    "HostDenoiser",
    "NodeMonitor",
    "advanced",
    "apply_adapters",
    "bank_folder",
    "bank_names",
    "bank_state",
    "check_bare",
    "check_model",
    "encode",
    "encode_prompts",
    "folder_state",
    "identify",
    "image_folder",
    "image_folders",
    "latent_masks",
    "lora_file",
    "lora_files",
    "lora_path",
    "lora_state",
    "ordinary_tensors",
    "other_patches",
    "register_model_folder",
    "reproducible",
    "schema",
    "told",
    "training_dtype",
    "written_lora_state",
]
