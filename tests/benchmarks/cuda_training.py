"""How `cuda` measures training: the UNet of a size, a bank that is filled, and the figures of a run's steps."""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from seqlora_core.bank import Bank, BaseIdentity, ConceptSpec
from seqlora_core.data.dataset import EncodedConcept, Example
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.model.sd15 import SD15, find_layers, layer_shapes, sd15_alphas_cumprod
from seqlora_core.model.text_encoder import CLIPTextEncoder
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import resolve
from seqlora_core.training.minibatches import draw_minibatches
from seqlora_core.training.trainer import train_concept
from tests import tiny_base
from tests.benchmarks.filled_bank import fill

IDENTITY = BaseIdentity("random", "0")


def make_unet(toy: bool) -> UNet2DConditionModel:
    """A UNet with random weights: one of two narrow levels, or SD1.5's."""
    if toy:
        return tiny_base.make_unet(channels=(32, 64), layers_per_block=1, text_width=32)
    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


@dataclass(frozen=True)
class Setting:
    """Where and at which size to measure.

    Attributes:
        toy: a UNet of two narrow levels and few steps, instead of SD1.5's with random weights.
        pixels: side of the images.
    """

    device: str
    toy: bool
    pixels: int

    @property
    def steps(self) -> int:
        return 3 if self.toy else 6

    @property
    def earlier(self) -> int:
        """Concepts of the large bank."""
        return 3 if self.toy else 100

    @property
    def text_width(self) -> int:
        return 32 if self.toy else SD15.text_width

    def denoiser(self, dtype: str = "float32") -> DiffusersDenoiser:
        """A UNet with random weights, made on the device."""
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = make_unet(self.toy)
        unet = unet.requires_grad_(False).eval().to(self.device, getattr(torch, dtype))
        return DiffusersDenoiser(unet, sd15_alphas_cumprod())


class _Clock(Monitor):
    """The moments of the steps, and of what came before the first.

    Two steps are timed together: in every second one, the earlier concepts do not act on a single image.
    """

    def __init__(self) -> None:
        self.moments = [time.monotonic()]

    def stepped(self, report) -> None:
        self.moments.append(time.monotonic())

    def figures(self) -> dict:
        """Seconds per step without the first, and what came before it in steps."""
        step = statistics.median((b - a) / 2 for a, b in zip(self.moments[1:], self.moments[3:], strict=False))
        return {"seconds": step, "setup": max(self.moments[1] - self.moments[0] - step, 0.0) / step}


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def random_concept(setting: Setting, prompts: Sequence[str] = ()) -> EncodedConcept:
    """One image and as many protected prompts, as random latents and embeddings."""
    generator, side = torch.Generator().manual_seed(0), setting.pixels // 8
    text = torch.randn(1 + len(prompts), 77, setting.text_width, generator=generator)
    examples = [Example(torch.randn(4, side, side, generator=generator), text[:1], texts=("a sksx",))]
    return EncodedConcept(examples, protected=text[1:] if prompts else None, source="random")


@lru_cache(maxsize=2)
def filled_bank(earlier: int, toy: bool, preset: str = "all") -> Path:
    """The folder of a bank with so many random concepts."""
    folder = Path(tempfile.mkdtemp()) / "bank"
    with torch.device("meta"):
        unet = make_unet(toy)
    fill(Bank.open_or_create(folder, IDENTITY, layer_shapes(find_layers(unet))), earlier, preset)
    return folder


def config_of(setting: Setting, dtype: str, **settings) -> ResolvedConfig:
    """Settings without a word, resolved; the steps are those of the size."""
    steps = settings.pop("steps", setting.steps)
    config = TrainingConfig(**{"token_vectors": 0, "steps": steps, "dtype": dtype, **settings})
    return resolve(config, setting.pixels, dtype)


def train_one(setting: Setting, dtype: str, earlier: int = 0, text: CLIPTextEncoder | None = None, **settings) -> dict:
    """Train one concept with protected prompts, as a user does; figures of its steps."""
    config = config_of(setting, dtype, **settings)
    denoiser, large = setting.denoiser(dtype), filled_bank(earlier, setting.toy, config.layers)
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(setting.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(large, Path(scratch, "bank"))
        clock = _Clock()
        concept = train_concept(
            denoiser,
            lambda prompts, words: random_concept(setting, prompts),
            Bank.open(folder),
            ConceptSpec("x", "sksx", "thing"),
            config,
            clock,
            text_encoder=text,
        )
    passes = concept.metrics["passes"] / config.steps
    return {**clock.figures(), "peak": _peak(setting.device), "note": f"{passes:g} passes per step"}


def train_plain(setting: Setting, dtype: str, with_peft: bool, **settings) -> dict:
    """A pass without any code of ours: only the input's gradient, or PEFT's LoRA on keys and values with Adam."""
    config, denoiser = config_of(setting, dtype, **settings), setting.denoiser(dtype)
    if with_peft:
        from peft import LoraConfig

        denoiser.unet.add_adapter(LoraConfig(r=config.rank, target_modules=["attn2.to_k", "attn2.to_v"]))
    trained = [parameter for parameter in denoiser.unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.Adam(trained, lr=1e-3) if trained else None
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(setting.device)
    sparing = denoiser.checkpointing() if config.gradient_checkpointing else contextlib.nullcontext()
    clock, data = _Clock(), random_concept(setting)
    with sparing:
        for step in range(config.steps):
            [minibatch] = draw_minibatches(data, denoiser, config, step)
            noisy = minibatch.noisy if trained else minibatch.noisy.requires_grad_()
            with torch.autocast(denoiser.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                loss = minibatch.squared_error(denoiser.predict_noise(noisy, minibatch.timesteps, minibatch.text))
            if optimizer is None:
                torch.autograd.grad(loss, noisy)
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loss.item()
            clock.stepped(None)
    return {"seconds": clock.figures()["seconds"], "peak": _peak(setting.device)}
