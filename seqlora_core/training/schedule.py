"""How the learning rates of the factors change during a training run: a pure function of the step's number."""

import math

from .config import ResolvedConfig


def learning_rate_factor(config: ResolvedConfig, step: int, steps: int) -> float:
    """The factor on both learning rates at a step: a linear warmup, then constant or a half cosine down to 0.

    The warmup begins above 0 and the cosine ends above it, so that no step is wasted.

    Args:
        step: from 0, of the factors.
        steps: of the factors in the whole run.
    """
    warmup = round(config.lr_warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
