"""The parts of `cuda`: each measures some variants of one thing, in a process of its own."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from seqlora_core.bank import Bank, ConceptSpec
from seqlora_core.bank.folder import write_manifest
from seqlora_core.bank.inspection import inspect
from seqlora_core.bank.manifest import Manifest
from seqlora_core.cli.demo import run_demo
from seqlora_core.cli.main import main as command_line
from seqlora_core.composition.concatenation import compose
from seqlora_core.composition.confined_sampling import confine_on, generate_confined
from seqlora_core.composition.regions import parse_region
from seqlora_core.composition.selection import select
from seqlora_core.devices import check_dtype
from seqlora_core.model.adapters import attach
from seqlora_core.model.base import Base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import SD15, find_layers, layer_shapes
from seqlora_core.model.text_encoder import CLIPTextEncoder
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.methods import resolve
from seqlora_core.training.minibatches import draw_minibatches
from seqlora_core.training.plan import make_plan
from seqlora_core.training.progress import loss_curve
from seqlora_core.training.trainer import train_concept
from tests import tiny_base
from tests.benchmarks.cuda_training import (
    IDENTITY,
    Setting,
    config_of,
    filled_bank,
    make_unet,
    random_concept,
    train_one,
    train_plain,
)
from tests.benchmarks.filled_bank import fill

Action = Callable[[], dict]


def variants(part: str, setting: Setting) -> Iterator[tuple[str, Action]]:
    """What a part measures, by name."""
    return PARTS[part](setting)


def _steps(setting: Setting, dtype: str) -> Iterator[tuple[str, Action]]:
    """The step of each method; the bare pass first, to which the others are compared."""
    check_dtype(torch.device(setting.device), dtype)
    yield "bare pass, input gradient", partial(train_plain, setting, dtype, with_peft=False)
    yield "lora (PEFT)", partial(train_plain, setting, dtype, with_peft=True)
    train = partial(train_one, setting, dtype)
    yield "lora", partial(train, method="lora")
    yield "alternating", partial(train, method="alternating")
    yield "seqlora", train
    yield "seqlora, large bank", partial(train, earlier=setting.earlier)
    yield "seqlora, all layers", partial(train, layers="all")
    yield "seqlora, eq. 18", partial(train, lower_step="repeat")
    for name, changes in (("checkpointing", {"gradient_checkpointing": True}), ("batch 4", {"batch_size": 4})):
        yield f"lora (PEFT), {name}", partial(train_plain, setting, dtype, with_peft=True, **changes)
        yield f"seqlora, {name}", partial(train, **changes)
        yield f"seqlora, eq. 18, {name}", partial(train, lower_step="repeat", **changes)


def _text_encoder(setting: Setting) -> CLIPTextEncoder:
    tokenizer = tiny_base.make_tokenizer(Path(tempfile.mkdtemp()))
    return CLIPTextEncoder(tokenizer, tiny_base.make_text_encoder(tokenizer, setting.text_width).to(setting.device))


def _words(setting: Setting) -> Iterator[tuple[str, Action]]:
    yield "bare pass, input gradient", partial(train_plain, setting, "float32", with_peft=False)

    def word() -> dict:
        settings = {"token_vectors": 2, "token_share": 0.9, "steps": 4 * setting.steps}
        return train_one(setting, "float32", text=_text_encoder(setting), **settings)

    yield "a word's step", word


def _composing(setting: Setting) -> Iterator[tuple[str, Action]]:
    denoiser, bank = setting.denoiser(), Bank.open(filled_bank(setting.earlier, setting.toy))
    [minibatch] = draw_minibatches(random_concept(setting), denoiser, config_of(setting, "float32"), 0)

    def one_pass(adapters: dict) -> dict:
        moved = {name: adapter.to(denoiser.device) for name, adapter in adapters.items()}
        with attach(find_layers(denoiser.unet), moved), torch.no_grad():
            return _timed(
                lambda: denoiser.predict_noise(minibatch.noisy, minibatch.timesteps, minibatch.text).sum().item()
            )

    selection = [(concept.name, 1.0) for concept in bank.concepts]
    yield "a pass of the base", lambda: one_pass({})
    yield f"compose {len(selection)} concepts", lambda: _timed(lambda: compose(bank, selection), times=1)
    yield f"a pass with {len(selection)} concepts", lambda: one_pass(compose(bank, selection))


def _timed(action: Callable[[], object], times: int = 3) -> dict:
    """The fastest of some calls."""
    seconds = []
    for _ in range(times):
        started = time.monotonic()
        action()
        seconds.append(time.monotonic() - started)
    return {"seconds": min(seconds)}


def _regions(setting: Setting) -> Iterator[tuple[str, Action]]:
    torch.manual_seed(0)
    pipeline = tiny_base.make_pipeline(Path(tempfile.mkdtemp()), **({} if setting.toy else _FULL_UNET))
    if not setting.toy:
        pipeline.text_encoder = tiny_base.make_text_encoder(pipeline.tokenizer, setting.text_width)
    pipeline.to(setting.device)
    pipeline.set_progress_bar_config(disable=True)
    layers = layer_shapes(find_layers(pipeline.unet))
    base = Base(pipeline, IDENTITY, layers, torch.device(setting.device), SD15)
    bank = Bank.open_or_create(Path(tempfile.mkdtemp()) / "bank", IDENTITY, layers)
    fill(bank, 2)
    parts = select(bank, [(concept.name, 1.0) for concept in bank.concepts])
    sampling = SamplingSettings(steps=setting.steps, size=max(setting.pixels, 128))
    regions = [parse_region("0,0,0.5,1=a sks0"), parse_region("0.5,0,1,1=a sks1")]

    def confined() -> object:
        confinement = confine_on(base, "a sks0 and a sks1", parts, sampling, bank.words(), regions)
        return generate_confined(base, confinement, sampling, bank.words())

    yield "a plain image", lambda: _timed(lambda: generate(base, "a cat and a dog", None, sampling), times=2)
    yield "two regions", lambda: _timed(confined, times=2)


_FULL_UNET = {"channels": (320, 640, 1280, 1280), "text_width": 768, "sample_size": 64}


def _small_card(setting: Setting) -> Iterator[tuple[str, Action]]:
    def on(gigabytes: int) -> dict:
        if not setting.device.startswith("cuda"):
            return {"note": "left out: it needs a card"}
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gigabytes * 2**30 / total, 1.0), setting.device)
        return train_one(setting, "float16", gradient_checkpointing=True)

    for gigabytes in (8, 6):
        yield f"float16, checkpointing, {gigabytes} GiB", partial(on, gigabytes)


def _profile(setting: Setting) -> Iterator[tuple[str, Action]]:
    yield "seqlora", partial(_profiled, setting)


def _profiled(setting: Setting) -> dict:
    """Reads of device memory per step, and the kernels that take most of the time."""
    from torch.profiler import ProfilerActivity, profile

    card = setting.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
    dtype = "bfloat16" if card else "float32"
    counts = []
    for steps in (setting.steps, 2 * setting.steps):  # the difference is that of the steps alone
        with profile(activities=activities) as recorded:
            train_one(setting, dtype, steps=steps, **({"method": "lora"} if setting.toy else {}))
        events = recorded.key_averages()
        waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize") if card else ("aten::_local_scalar_dense",)
        counts.append(sum(event.count for event in events if event.key in waits))
    key = "self_device_time_total" if card else "self_cpu_time_total"
    largest = sorted(events, key=lambda event: -getattr(event, key))[:5]
    total = sum(getattr(event, key) for event in events)
    shares = ", ".join(f"{event.key[:40]} {getattr(event, key) / total:.0%}" for event in largest)
    what = "waits" if card else "reads of scalars, the optimizer's own step counts among them"
    figures = {"syncs": (counts[1] - counts[0]) / setting.steps} if card else {}
    return {**figures, "note": f"{(counts[1] - counts[0]) / setting.steps:.1f} {what} per step; {shares}"}


def _repeats(setting: Setting) -> Iterator[tuple[str, Action]]:
    def difference() -> dict:
        made = []
        for _ in range(2):
            config, denoiser = config_of(setting, "float32", steps=3), setting.denoiser()
            with tempfile.TemporaryDirectory() as folder:
                bank = Bank.open_or_create(folder, IDENTITY, layer_shapes(find_layers(denoiser.unet)))
                spec = ConceptSpec("x", "sksx", "thing")
                train_concept(denoiser, lambda prompts, words: random_concept(setting, prompts), bank, spec, config)
                made.append(bank.load()["x"])
        pairs = [(a, b) for name in made[0] for a, b in zip(made[0][name].factors, made[1][name].factors, strict=True)]
        largest = max(((a - b).norm() / a.norm().clamp_min(1e-12)).item() for a, b in pairs)
        return {"note": "equal tensors" if largest == 0 else f"relative difference {largest:.1e}"}

    yield "the same seed twice", difference


def _banks(setting: Setting) -> Iterator[tuple[str, Action]]:
    with torch.device("meta"):
        layers = find_layers(make_unet(setting.toy))
    large = Bank.open(filled_bank(setting.earlier, setting.toy))
    spec, requested = ConceptSpec("next", "sksnext", "thing"), TrainingConfig(layers="all")
    plan = partial(make_plan, large, spec, requested, resolve(requested, setting.pixels, "float32"), layers)
    yield f"read {setting.earlier} concepts", lambda: _timed(lambda: Bank.open(large.folder).load(), times=1)
    yield f"plan after {setting.earlier} concepts", lambda: _timed(plan, times=1)
    yield f"inspect {setting.earlier} concepts", lambda: _timed(lambda: inspect(large), times=1)
    folder = Path(tempfile.mkdtemp())
    write_manifest(folder, _repeated(large, 1000))
    yield "open 1,000 concepts", lambda: _timed(lambda: Bank.open(folder))
    yield "list 1,000 concepts", lambda: _timed(lambda: _listed(folder))


def _repeated(bank: Bank, count: int) -> Manifest:
    """The manifest of a bank with so many concepts, of which there are no files."""
    config = config_of(Setting("cpu", True, 64), "float32")
    losses = loss_curve([0.12345 + i / 999 for i in range(100)])
    curve = {"loss_curve": losses, "word_loss_curve": losses}
    one = replace(bank.concepts[0], settings=config.as_dict(), requested=config.as_dict(), metrics=curve)
    concepts = [
        replace(one, id=f"{i:032x}", name=f"concept {i}", token=f"sks{i}", file=f"concepts/concept-{i}.safetensors")
        for i in range(count)
    ]
    return replace(bank.manifest, concepts=tuple(concepts))


def _listed(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert command_line(["list", "--bank", str(folder)]) == 0


def _tests(setting: Setting) -> Iterator[tuple[str, Action]]:
    """The core's tests with their models on the device, and those of the nodes where there is a ComfyUI."""
    places = ["test_subspace.py"] if setting.toy else ["bank", "composition", "model", "training", "test_subspace.py"]
    command = ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--device", setting.device]
    yield "core", lambda: _python([*command, *(f"tests/{place}" for place in places)])
    host = Path(os.environ.get("COMFYUI_DIR", Path.home() / "ComfyUI"))
    if setting.toy or not (host / "main.py").is_file():
        yield "nodes", lambda: {"note": f"left out: toy size, or no ComfyUI in {host}"}
    else:
        yield "nodes", lambda: _python(["-m", "pytest", "-q", "-m", "smoke", "tests/host"])


def _python(arguments: Sequence[str]) -> dict:
    started = time.monotonic()
    done = subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    row = {"seconds": time.monotonic() - started, "note": "; ".join([last, *failed[:5]])}
    return row if done.returncode == 0 else {**row, "error": row["note"]}


def _demo(setting: Setting) -> Iterator[tuple[str, Action]]:
    """The same training on the card and on its CPU."""

    def identities() -> dict:
        if setting.toy:
            return {"note": "left out: it takes minutes"}
        found = []
        for device in (setting.device, "cpu"):
            with tempfile.TemporaryDirectory() as out:
                report = run_demo(Path(out), 1, 0, Monitor(), device)
            found.append(report["concepts"][0]["identity"]["after_training"])
        return {"note": f"identity {found[0]:.3f} on the card, {found[1]:.3f} on the CPU"}

    yield "one concept of the demo", identities


PARTS: dict[str, Callable[[Setting], Iterator[tuple[str, Action]]]] = {
    "steps bfloat16": partial(_steps, dtype="bfloat16"),
    "profile": _profile,
    "tests": _tests,
    "small card": _small_card,
    "steps float16": partial(_steps, dtype="float16"),
    "steps float32": partial(_steps, dtype="float32"),
    "words": _words,
    "composing": _composing,
    "regions": _regions,
    "repeats": _repeats,
    "bank": _banks,
    "demo": _demo,
}
