"""What the benchmarks inside ComfyUI share: the node pack as the host imports it, and SD1.5's UNet in its terms."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
_UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2]},
    **{"channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1},
    **{"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8, "context_dim": 768},
    **{"use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None},
    **{"use_temporal_attention": False},
}


def unet_config(dtype: object) -> dict:
    """The host's configuration of SD1.5's UNet, with weights of a torch dtype."""
    return {**_UNET, "dtype": dtype}


def pack(module: str) -> ModuleType:
    """A module of the node pack, imported as the host does it: the checkout is a package."""
    name = "seqlora_pack"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{name}.{module}")
