"""Ways to make one update out of several concepts' adapters, one file each; adding one touches its file and the table.

Summing is what SeqLoRA is made for.  The others are what it is compared with: they take the same adapters and spend
time, and most of them forward passes on the base, to keep concepts out of each other's way.
"""

from .custom_diffusion import CUSTOM_DIFFUSION
from .fusion import Fused, Fusion, FusionSettings, Source, fuse
from .gradient_fusion import GRADIENT_FUSION
from .linear import SUM, WEIGHTED_AVERAGE
from .loraclr import LORACLR

FUSIONS = {fusion.name: fusion for fusion in (SUM, WEIGHTED_AVERAGE, GRADIENT_FUSION, LORACLR, CUSTOM_DIFFUSION)}
WITHOUT_BASE = tuple(name for name, fusion in FUSIONS.items() if not fusion.reads_base)

__all__ = ["FUSIONS", "WITHOUT_BASE", "Fused", "Fusion", "FusionSettings", "Source", "fuse"]
