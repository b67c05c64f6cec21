"""Fusions: ways to combine the adapters of several concepts into one update, one file each.

SeqLoRA is made for the plain sum.  The other fusions are baselines: they take the same adapters and spend time, and
most of them forward passes of the base, on reducing interference.  A new fusion needs a file and an entry in `FUSIONS`.
"""

from .custom_diffusion import CUSTOM_DIFFUSION
from .fusion import Fused, Fusion, FusionSettings, Source, fuse
from .gradient_fusion import GRADIENT_FUSION
from .linear import SUM, WEIGHTED_AVERAGE
from .loraclr import LORACLR
from .ssr_merge import SSR_MERGE
from .ties import TIES

FUSIONS = {
    fusion.name: fusion
    for fusion in (SUM, WEIGHTED_AVERAGE, GRADIENT_FUSION, LORACLR, CUSTOM_DIFFUSION, SSR_MERGE, TIES)
}
WITHOUT_BASE = tuple(name for name, fusion in FUSIONS.items() if not fusion.reads_base)

__all__ = ["FUSIONS", "WITHOUT_BASE", "Fused", "Fusion", "FusionSettings", "Source", "fuse"]
