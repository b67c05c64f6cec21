"""LoRA files whose layers have numbers instead of names: `unet:0:up`, `unet:0:down`, ...

cloneofsimo's `lora_diffusion` numbers the linear layers of a UNet's attention and GEGLU modules in the order of the
UNet's modules (https://github.com/cloneofsimo/lora, `_find_modules_v2`), and applies them with scale 1.  That order
depends on the diffusers of the training run: the feed-forward layer came between the two attentions once, and the
middle block comes before or after the way up.  The shapes of the factors show which order a file has.
"""

import itertools
import re
from collections.abc import Mapping

from ..errors import UserError
from ..model.sd15 import LayerShape

_KEY = re.compile(r"(?P<model>[a-z_]+):(?P<number>\d{1,4}):(?P<part>up|down)")
_WAYS = ("down", "up", "mid"), ("down", "mid", "up")
_MODULES = ("1", "ff", "2"), ("1", "2", "ff"), ("1", "2")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def is_numbered(keys: Mapping[str, object]) -> bool:
    """Whether the keys are of this kind."""
    return bool(keys) and all(_KEY.fullmatch(key) for key in keys) and any(key.startswith("unet:") for key in keys)


def named_keys(shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, LayerShape], source: str) -> dict[str, str]:
    """Name the layers of a file of numbers.

    Args:
        shapes: of the file's tensors, by key.

    Returns:
        The name, as diffusers writes it, -> the key in the file.

    Raises:
        UserError: the shapes are those of no order, or of more than one.
    """
    unet = [key for key in shapes if key.startswith("unet:")]
    widths = []
    for number in range(len(unet) // 2):
        down, up = (shapes.get(f"unet:{number}:{part}", ()) for part in ("down", "up"))
        if len(down) != 2 or len(up) != 2:
            raise UserError(
                f"{source} numbers its layers, and number {number} is no linear layer: choose another file."
            )
        widths.append((down[1], up[0]))
    orders = [order for order in _orders(layers) if [shape for _, shape in order] == widths]
    if len(orders) != 1:
        raise UserError(
            f"{source} numbers its layers instead of naming them, and their order is not certain for this bank's base "
            "model: choose a file that names its layers."
        )
    names = [f"unet.{name}.lora" for name, _ in orders[0]]
    own = {f"{name}.{part}": f"unet:{number}:{part}" for number, name in enumerate(names) for part in ("up", "down")}
    return own | {".lora.".join(key.replace(":", ".").rsplit(".", 1)): key for key in shapes if key not in unet}


def _orders(layers: Mapping[str, LayerShape]) -> list[list[tuple[str, tuple[int, int]]]]:
    """Every order of layers that a version of diffusers may have had, with their widths of input and output."""
    blocks: dict[tuple[str, tuple[int, ...]], str] = {}
    for layer in layers:
        place = [int(number) for number in re.findall(r"\d+", layer.split(".transformer_blocks")[0])]
        blocks[layer.split("_")[0], tuple(place)] = layer.rsplit(".attn", 1)[0]
    orders = []
    for ways, modules in itertools.product(_WAYS, _MODULES):
        rows = sorted(blocks, key=lambda key: (ways.index(key[0]), key[1]))
        orders.append([entry for row in rows for module in modules for entry in _module(blocks[row], module, layers)])
    return [order for index, order in enumerate(orders) if order not in orders[:index]]


def _module(block: str, module: str, layers: Mapping[str, LayerShape]) -> list[tuple[str, tuple[int, int]]]:
    if module == "ff":  # GEGLU: to the gate and the value of a layer of four times the width
        width = layers[f"{block}.attn1.to_q"].width
        return [(f"{block}.ff.net.0.proj", (width, 8 * width))]
    names = [f"{block}.attn{module}.{projection}" for projection in _PROJECTIONS]
    return [(name, tuple(layers[name])) for name in names if name in layers]
