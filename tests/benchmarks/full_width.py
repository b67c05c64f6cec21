"""Peak memory and seconds per iteration on the full-width SD1.5 UNet (860 M random weights), a few steps per method.

    python tests/benchmarks/full_width.py [--device cpu] [--dtype float32] [--pixels 128] [--steps 2]

Each method runs in a process of its own, so that the measured peak is its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

EVERYTHING = {"layers": "all"}
METHODS = {
    "seqlora, eq. 18": {"method": "seqlora", "lower_step": "repeat", **EVERYTHING},
    "alternating": {"method": "alternating", **EVERYTHING},
    "lora": {"method": "lora", **EVERYTHING},
    "seqlora, eq. 18, checkpointing": {
        **{"method": "seqlora", "lower_step": "repeat", "gradient_checkpointing": True},
        **EVERYTHING,
    },
    "seqlora, lower step reused": {"method": "seqlora", **EVERYTHING},
    "seqlora, keys and values": {"method": "seqlora"},
}


def measure(arguments: argparse.Namespace, settings: dict) -> dict:
    """Train one concept of random latents on a fresh UNet, without protected prompts."""
    import torch
    from diffusers import UNet2DConditionModel

    from seqlora_core.bank import Bank, BaseIdentity
    from seqlora_core.bank.spec import ConceptSpec
    from seqlora_core.data.dataset import EncodedConcept, Example
    from seqlora_core.model.denoiser import DiffusersDenoiser
    from seqlora_core.model.sd15 import find_layers, layer_shapes, sd15_alphas_cumprod
    from seqlora_core.monitor import Monitor
    from seqlora_core.training.config import TrainingConfig
    from seqlora_core.training.methods import resolve
    from seqlora_core.training.trainer import train_concept

    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).requires_grad_(False).eval()
    dtype = getattr(torch, arguments.dtype)
    denoiser = DiffusersDenoiser(unet.to(arguments.device, dtype), sd15_alphas_cumprod())
    parameters = sum(p.numel() for p in unet.parameters())

    class Clock(Monitor):
        moments = [time.monotonic()]  # noqa: RUF012 (one instance)

        def stepped(self, report) -> None:
            self.moments.append(time.monotonic())

    side = arguments.pixels // 8
    data = EncodedConcept([Example(torch.randn(4, side, side), torch.randn(1, 77, 768))])
    config = resolve(
        TrainingConfig(token_vectors=0, steps=arguments.steps, **settings), arguments.pixels, arguments.dtype
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.open_or_create(folder, BaseIdentity("random", "0"), layer_shapes(find_layers(unet)))
        spec = ConceptSpec("x", "sksx", "thing")
        concept = train_concept(denoiser, lambda prompts, words: data, bank, spec, config, clock)
    seconds = [later - earlier for earlier, later in zip(clock.moments[1:], clock.moments[2:], strict=False)]
    return {
        "parameters": parameters,
        "passes": concept.metrics["passes"] / arguments.steps,
        "seconds": min(seconds) if seconds else clock.moments[-1] - clock.moments[0],
        "peak": peak_memory(arguments.device),
    }


def peak_memory(device: str) -> int:
    """Peak memory in bytes: of the graphics card on cuda, else of this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, METHODS[arguments.one])))
        return
    print(f"full-width SD1.5 UNet, {arguments.pixels} px, {arguments.dtype} on {arguments.device}, rank 4, batch 1")
    print(f"{'method':36}{'passes':>8}{'s/iteration':>13}{'to lora':>9}{'peak GiB':>10}")
    rows = {}
    for name in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name] = json.loads(output.splitlines()[-1])
    for name, row in rows.items():
        ratio = row["seconds"] / rows["lora"]["seconds"]
        print(f"{name:36}{row['passes']:8.0f}{row['seconds']:13.2f}{ratio:9.2f}{row['peak'] / 2**30:10.2f}")
    print(f"{rows['lora']['parameters'] / 1e6:.0f} M frozen parameters")


if __name__ == "__main__":
    main()
