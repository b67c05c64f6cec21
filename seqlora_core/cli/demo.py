"""The command `demo`: learn a few concepts one after another on the shipped mini base, and report what each lost."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..bank import Bank
from ..bank.inspection import inspect
from ..bank.names import default_token
from ..bank.spec import ConceptSpec
from ..composition.concatenation import compose
from ..data.encoding import encode_concept
from ..data.images import to_tensor
from ..data.prompts import subject_prompt, template_prompts
from ..data.reference_folder import Reference
from ..data.words import NO_WORDS, Words
from ..errors import UserError
from ..mini import MiniConcept, mini_concepts
from ..mini.identity import identity_similarity
from ..model.base import Base, load_base
from ..model.sampling import SamplingSettings, generate
from ..monitor import Monitor
from ..plots import image_grid, line_chart
from ..training.config import ResolvedConfig, TrainingConfig
from ..training.methods import resolve
from ..training.plan import trained_subject
from ..training.trainer import RunOptions, train_concept
from . import options
from .output import check_output
from .terminal import TerminalMonitor, quiet_libraries

IMAGES = 8  # of every concept at every stage; the figures are their means
SHOWN = 2  # of them in the grid
SAMPLER_STEPS, GUIDANCE = 25, 4.0
# Of the settings tried on these four, those that keep most in the end.
SETTINGS = {"rank": 2, "steps": 200, "batch_size": 4, "lr_coefficients": 1e-2, "lr_basis": 1e-2}
# The first two look alike on purpose.
ORDER = ("guide dog", "service dog", "taxi", "parrot")


def add_demo(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    command = commands.add_parser("demo", help="see it work on a small base model that is included")
    command.add_argument(
        "--out",
        required=True,
        type=options.location,
        metavar="DIR",
        help="folder for the images, the report and the bank",
    )
    command.add_argument(
        "--concepts", type=options.count, default=4, metavar="N", help="concepts to learn (default: 4)"
    )
    command.add_argument("--seed", type=options.seed, default=0, metavar="N", help="random seed (default: 0)")
    command.add_argument(
        "--device", default="cpu", help="device to run on: cpu, cuda, cuda:1, mps (default: cpu, which is fast enough)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    out, monitor = Path(args.out), TerminalMonitor()
    quiet_libraries()
    with monitor.watching():
        report = run_demo(out, args.concepts, args.seed, monitor, args.device)
    for concept in report["concepts"]:
        scores = concept["identity"]
        print(
            f"{concept['name']}: identity {scores['base']:.2f} before training, "
            f"{scores['after_training']:.2f} right after, {scores['after_all']:.2f} after all concepts"
        )
    print(
        f"Forgetting {report['forgetting']:.3f}, largest overlap {report['max_overlap']:.0e}. See {out / 'grid.png'}."
    )


@dataclass
class Learned:
    """One concept of the demo and its images, by the stage at which they were made."""

    concept: MiniConcept
    spec: ConceptSpec
    seconds: float = 0.0
    losses: Sequence[float] = ()
    images: dict[str, list[Image.Image]] = field(default_factory=dict)

    def similarity(self, stage: str) -> float:
        """Mean identity similarity to the references, at most 1."""
        return identity_similarity(to_tensor(self.images[stage]), to_tensor(self.concept.references)).mean().item()


def run_demo(
    out: Path, count: int, seed: int, monitor: Monitor, device: str = "cpu", settings: dict = SETTINGS
) -> dict:
    """Trains `count` concepts in sequence and writes `grid.png`, `losses.png` and `report.json` into `out`.

    Args:
        device: by name (see `devices.resolve_device`).
        settings: of the training runs, where they differ from the defaults (see `TrainingConfig`).

    Returns:
        The report.

    Raises:
        UserError: the folder cannot be written, or holds a demo already.
    """
    started = time.monotonic()
    base = load_base("mini", device)
    chosen = _choose(count)
    bank = _new_bank(out, base)
    config = resolve(TrainingConfig(seed=seed, **settings), base.native_size, "float32")
    learned = [Learned(c, ConceptSpec(c.name, default_token(c.name), c.class_word)) for c in chosen]
    for number, entry in enumerate(learned, start=1):
        monitor.message(f"{number}/{count}: {entry.spec.name!r}")
        entry.images["base"] = _draw(base, None, subject_prompt(entry.spec.class_word), seed)
        _train(base, bank, entry, config, monitor)
        entry.images["after training"] = _draw_composed(base, bank, entry, seed)
    for entry in learned:
        entry.images["after all"] = _draw_composed(base, bank, entry, seed)
    pairs = _draw_pairs(base, bank, learned, seed)
    report = _report(bank, learned, config, time.monotonic() - started)
    _write(out, learned, pairs, report)
    return report


def _choose(count: int) -> list[MiniConcept]:
    known = mini_concepts()
    if not 1 <= count <= len(known):
        raise UserError(f"The demo has 1 to {len(known)} concepts, not {count}.")
    return sorted(known, key=lambda c: ORDER.index(c.name) if c.name in ORDER else len(ORDER))[:count]


def _new_bank(out: Path, base: Base) -> Bank:
    check_output(out)
    if Bank.exists(out / "bank"):
        raise UserError(f"{out} already has the bank of a demo: give another folder, or delete it.")
    return Bank.open_or_create(out / "bank", base.identity, base.layers)


def _train(base: Base, bank: Bank, entry: Learned, config: ResolvedConfig, monitor: Monitor) -> None:
    prompts = template_prompts(trained_subject(entry.spec, config))
    references = [Reference(image, prompts, entry.spec.name) for image in entry.concept.references]
    stored = train_concept(
        base.denoiser(),
        lambda prompts, words: encode_concept(
            base, references, config.resolution, protected=prompts, words=words, monitor=monitor
        ),
        bank,
        entry.spec,
        config,
        monitor,
        RunOptions(thumbnail=entry.concept.references[0]),
        text_encoder=base.text_encoder,
    )
    entry.seconds, entry.losses = stored.metrics["seconds"], stored.metrics["loss_curve"]


def _draw_composed(base: Base, bank: Bank, entry: Learned, seed: int) -> list[Image.Image]:
    """From the sum of all concepts that the bank holds at the time."""
    adapters = compose(bank, [(concept.name, 1.0) for concept in bank.concepts])
    subject = bank.concept(entry.spec.name).subject
    return _draw(base, adapters, subject_prompt(subject), seed, bank.words())


def _draw_pairs(base: Base, bank: Bank, learned: Sequence[Learned], seed: int) -> list[tuple[str, list[Image.Image]]]:
    adapters = compose(bank, [(concept.name, 1.0) for concept in bank.concepts])
    words, pairs = bank.words(), []
    for left, right in zip(learned[::2], learned[1::2], strict=False):
        one, other = (bank.concept(entry.spec.name).subject for entry in (left, right))
        images = _draw(base, adapters, f"a {one} left of a {other}", seed, words)
        pairs.append((f"{left.concept.name} left of {right.concept.name}", images))
    return pairs


def _draw(base: Base, adapters, prompt: str, seed: int, words: Words = NO_WORDS) -> list[Image.Image]:
    settings = SamplingSettings(SAMPLER_STEPS, base.native_size, GUIDANCE, seed, count=IMAGES)
    return generate(base, prompt, adapters, settings, words)


def _report(bank: Bank, learned: Sequence[Learned], config: ResolvedConfig, seconds: float) -> dict:
    concepts = []
    for entry in learned:
        figures = {stage.replace(" ", "_"): round(entry.similarity(stage), 4) for stage in entry.images}
        concepts.append(
            {
                "name": entry.spec.name,
                "token": entry.spec.token,
                "class_word": entry.spec.class_word,
                "identity": figures,
                "forgetting": round(figures["after_training"] - figures["after_all"], 4),
                "seconds": entry.seconds,
            }
        )
    return {
        "concepts": concepts,
        "forgetting": round(sum(concept["forgetting"] for concept in concepts) / len(concepts), 4),
        "max_overlap": inspect(bank).max_overlap,
        "seconds": round(seconds, 1),
        "settings": config.as_dict(),
    }


def _write(out: Path, learned: Sequence[Learned], pairs: Sequence[tuple[str, list[Image.Image]]], report: dict) -> None:
    stages = ("base", "after training", "after all")
    rows = [
        (entry.spec.name, [entry.concept.references[:SHOWN], *(entry.images[stage][:SHOWN] for stage in stages)])
        for entry in learned
    ]
    titles = ["references", "plain base, class word", "right after training", "after all are learned"]
    grid = image_grid(titles, rows, footer=[(title, images[: SHOWN * 4]) for title, images in pairs])
    grid.save(out / "grid.png", optimize=True)
    line_chart({entry.spec.name: entry.losses for entry in learned}).save(out / "losses.png", optimize=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
