"""Training methods, one file each.  Adding one touches its file and this table (and the choices in `config`)."""

from .alternating import ALTERNATING
from .inflora import INFLORA
from .lora import LORA
from .method import Method
from .orthogonal import ORTHOGONAL
from .seqlora import SEQLORA

METHODS = {method.name: method for method in (SEQLORA, ALTERNATING, ORTHOGONAL, INFLORA, LORA)}

__all__ = ["METHODS", "Method"]
