"""Training methods, one file each.  Adding one touches its file, this table, and `config.METHOD_NAMES`."""

from ..config import ResolvedConfig, TrainingConfig
from .alternating import ALTERNATING
from .c_lora import C_LORA
from .inflora import INFLORA
from .lora import LORA
from .method import Method
from .orthogonal import ORTHOGONAL
from .seqlora import SEQLORA

METHODS = {method.name: method for method in (SEQLORA, ALTERNATING, ORTHOGONAL, INFLORA, LORA, C_LORA)}

__all__ = ["METHODS", "Method", "resolve"]


def resolve(config: TrainingConfig, native_size: int, dtype: str, images: int = 0) -> ResolvedConfig:
    """Decide what a user left open: by the method, by the base model and by the device.

    Args:
        native_size: side of the base model's images, in pixels.
        dtype: the device's fastest safe precision.
        images: of the concept, for a number of steps that is left open; 0 where they are not known.
    """
    return config.resolve(METHODS[config.method].defaults, native_size, dtype, images)
