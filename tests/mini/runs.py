"""What every training of the mini world shares: learning rate, averaged weights, and going on after a stop."""

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

SAVE_SECONDS = 180


class Run:
    """A deterministic training: the random numbers of a step depend on its number alone, so that a run which was
    stopped and taken up again sees what an unbroken one would have seen.

    Args:
        first: the number of the first step, where the run goes on from another one's weights.
    """

    def __init__(
        self, module: nn.Module, path: Path, steps: int, learning_rate: float, decay: float = 0.998, first: int = 0
    ):
        self.module, self.path, self.steps, self.decay, self.first = module, path, steps, decay, first
        self.average = deepcopy(module).requires_grad_(False)
        self.trained = list(module.parameters())
        self.optimizer = AdamW(self.trained, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.schedule = OneCycleLR(self.optimizer, learning_rate, steps, pct_start=0.05, final_div_factor=20)
        self.done, self.losses = 0, []
        self.began = self.saved = time.monotonic()
        if path.exists():
            self._load()
        self._reseed()

    def going(self) -> bool:
        return self.done < self.steps

    def step(self, loss: Tensor) -> None:
        """One optimizer step; saves now and then."""
        self.step_along(loss.item(), torch.autograd.grad(loss, self.trained))

    def step_along(self, loss: float, gradients: Sequence[Tensor]) -> None:
        """One optimizer step along given gradients, one for each trained parameter."""
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # the fused step reads another memory layout's numbers wrongly
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        self.losses.append(loss)
        decay = min(self.decay, self.done / (self.done + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.module.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        if self.done % 100 == 0:
            seconds = time.monotonic() - self.began
            print(
                f"{self.path.stem} {self.done}/{self.steps} loss {np.mean(self.losses[-100:]):.4f} {seconds:.0f} s",
                flush=True,
            )
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.finish()
        self._reseed()

    def finish(self) -> None:
        """Save all that is needed to go on, and the averaged weights."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "done": self.done,
            "losses": self.losses,
        }
        scratch = self.path.with_suffix(".part")
        torch.save(state, scratch)
        os.replace(scratch, self.path)
        self.saved = time.monotonic()

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for name in ("module", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.done, self.losses = state["done"], state["losses"]

    def _reseed(self) -> None:
        self.rng = np.random.default_rng([2, self.first + self.done])
        self.noise = torch.Generator().manual_seed(self.first + self.done)
