"""How often a step waits for the device: a graphics card stands still while the program reads a number from it."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import StopAfter, captioned, learn, resolved, spec

from seqlora_core.training import minibatches
from seqlora_core.training.trainer import train_concept

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
# The optimizer's step counts and the random numbers of minibatches are on the CPU on every machine.
ON_THE_CPU = (str(Path(torch.optim.__file__).parent), str(Path(minibatches.__file__)))


class Reads(TorchDispatchMode):
    """Counts reads of tensors that are on the device."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        original = torch.Tensor.tolist

        def tolist(tensor):
            self.add()
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().split(".")[0] in READS:
            self.add()
        return function(*args, **(kwargs or {}))

    def add(self) -> None:
        frame, places = sys._getframe(1), []
        while frame is not None and len(places) < 12:
            places.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
            frame = frame.f_back
        if not any(place.startswith(ON_THE_CPU) or place.endswith(":_preconditioner") for place in places):
            self.count += 1


class CountedSteps(StopAfter):
    """The reads up to each step."""

    def __init__(self, reads: Reads) -> None:
        super().__init__(99)
        self.reads, self.counts = reads, []

    def stepped(self, report) -> None:
        super().stepped(report)
        self.counts.append(self.reads.count)


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "lora"}, {"method": "alternating"}, {"lower_step": "repeat"}, {"batch_size": 2, "accumulation": 2}],
    ids=["seqlora", "lora", "alternating", "eq. 18", "accumulation"],
)
def test_a_step_reads_from_the_device_only_once(denoiser, bank, text_encoder, monkeypatch, settings):
    reads = Reads(monkeypatch)
    monitor = CountedSteps(reads)
    data = captioned(text_encoder, spec("a"))
    with reads:
        learn(denoiser, bank, "a", data, monitor=monitor, layers="cross-kv", steps=6, **settings)
    of_steps = [later - earlier for earlier, later in pairwise(monitor.counts)]
    assert of_steps == [1] * 5


def test_a_step_of_the_word_reads_from_the_device_only_once(denoiser, bank, text_encoder, monkeypatch):
    reads = Reads(monkeypatch)
    monitor, own = CountedSteps(reads), spec("a")
    config = resolved(token_vectors=2, token_share=0.9, layers="cross-kv", steps=6)
    with reads:
        train_concept(denoiser, captioned(text_encoder, own), bank, own, config, monitor, text_encoder=text_encoder)
    of_steps = [later - earlier for earlier, later in pairwise(monitor.counts)][:6]
    assert of_steps == [1] * 6
