"""What every training of the mini world shares: step size, averaged weights, precision, and going on after a stop."""

import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from .muon import Muon

SAVE_SECONDS = 120
WARM_UP = 50
DECAY = 3.0  # 1 over the share of the steps in which `plateau` goes down
Schedule = Callable[[Optimizer, float, int], LRScheduler]


def adam(module: nn.Module, step_size: float) -> Optimizer:
    return AdamW(module.parameters(), step_size, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def muon(module: nn.Module, step_size: float) -> Optimizer:
    """Muon for all matrices but embeddings, few of whose rows have a gradient."""
    rows = [part.weight for part in module.modules() if isinstance(part, nn.Embedding)]
    return Muon(module.parameters(), step_size, rows=rows)


def one_cycle(optimizer: Optimizer, step_size: float, steps: int) -> LRScheduler:
    """Up to the step size and down again."""
    return OneCycleLR(optimizer, step_size, steps, pct_start=0.05, final_div_factor=20)


def plateau(optimizer: Optimizer, step_size: float, steps: int) -> LRScheduler:
    """The full step size until a third of the steps is left, which take it to zero.

    Before that nothing depends on the number of steps: a run can be made longer or shorter while it goes on.
    """
    return LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / WARM_UP, DECAY * (1 - done / steps)))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it: a CPU without AVX512 only emulates it, 15 times slower than float32."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    # Without the cache: threads would share cast weights, and with them pieces of each other's graphs.
    return torch.autocast(device.type, torch.bfloat16, enabled=fast, cache_enabled=False)


class Run:
    """A deterministic training of a module, on its device: the random numbers of a step depend on its number alone, so
    that a run which was stopped and taken up again sees what an unbroken one would have seen.

    Args:
        step_size: the largest.
        decay: of the averaged weights.
        first: the number of the first step, where the run goes on from another one's weights.
    """

    def __init__(
        self,
        module: nn.Module,
        path: Path,
        steps: int,
        step_size: float,
        decay: float = 0.998,
        first: int = 0,
        schedule: Schedule = one_cycle,
        optimizer: Callable[[nn.Module, float], Optimizer] = adam,
    ):
        self.module, self.path, self.steps, self.decay, self.first = module, path, steps, decay, first
        self.average = deepcopy(module).requires_grad_(False)
        self.trained = list(module.parameters())
        self.device = self.trained[0].device
        self.optimizer = optimizer(module, step_size)
        self.schedule = schedule(self.optimizer, step_size, steps)
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
            # The fused step reads the numbers of another memory layout than the parameter's wrongly.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
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
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        for name in ("module", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.done, self.losses = state["done"], state["losses"]

    def _reseed(self) -> None:
        self.rng = np.random.default_rng([2, self.first + self.done])
        self.noise = torch.Generator().manual_seed(self.first + self.done)
