"""The command `evaluate`: score every concept of a bank, and what later concepts made it forget."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..bank import Bank
from ..composition.confinement import describe_unconfined
from ..composition.selection import select
from ..data.prompts import SUBJECT_TEMPLATE
from ..data.reference_folder import read_folder
from ..data.stream import Stream, read_prompts, read_stream
from ..devices import resolve_device
from ..errors import UserError
from ..evaluation.metrics import load_metrics
from ..evaluation.protocol import Evaluation, EvaluationSettings
from ..evaluation.report import write_report
from ..evaluation.tables import to_markdown
from ..files import check_writable
from ..mini import mini_concepts
from ..model.sampling import SamplingSettings
from ..monitor import Monitor
from .options import BaseOptions, add_bank, add_base, add_device, add_own_words, add_sampling, count, location
from .output import check_output
from .terminal import TerminalMonitor


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    command = commands.add_parser("evaluate", help="score every concept, and what it lost to later ones")
    add_base(command)
    add_device(command)
    add_bank(command)
    command.add_argument(
        "--out",
        required=True,
        type=location,
        metavar="DIR",
        help="folder for images, tables and plots; existing images are reused",
    )
    command.add_argument(
        "--references",
        type=location,
        metavar="DIR",
        help="folder with one folder of images per concept, named after the concept",
    )
    command.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[=FOLDER]",
        help="score to compute: identity (on the mini base), or clip-i, clip-t, dino, dinov2 or dinov3 with a local "
        "transformers folder, or dreamsim, hpsv2 or hpsv3 with a folder of its weights; repeat the option for more "
        "scores",
    )
    command.add_argument(
        "--trajectory", action="store_true", help="score all concepts after every concept learned, not only at the end"
    )
    command.add_argument(
        "--images", type=count, default=16, metavar="N", help="images per concept and stage (default: 16)"
    )
    command.add_argument("--prompt", help=f"prompt with {{}} in place of the concept (default: {SUBJECT_TEMPLATE})")
    command.add_argument(
        "--prompts",
        type=location,
        metavar="FILE",
        help="file with one such prompt per line, over which scores are averaged",
    )
    command.add_argument(
        "--stream",
        type=location,
        metavar="FILE",
        help="the list that the bank was trained from; its entries have the images of the concepts, and may have files "
        "of prompts",
    )
    command.add_argument(
        "--prompts-per-concept", type=count, metavar="N", help="use only the first N prompts of every file"
    )
    add_own_words(command)
    add_sampling(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    bank = Bank.open(args.bank)
    if not bank.concepts:
        raise UserError("The bank has no concept yet: train one first.")
    sampling = SamplingSettings(steps=args.steps, guidance=args.guidance, seed=args.seed, count=args.images)
    prompt = SUBJECT_TEMPLATE if args.prompt is None else args.prompt
    settings = EvaluationSettings(prompt, sampling, args.own_words)
    stream = read_stream(args.stream) if args.stream else None
    prompts = _prompts(args, bank, stream)
    out, monitor = check_output(args.out, args.bank, args.base, args.references), TerminalMonitor()
    check_writable(out / "report.json")
    metrics = load_metrics(args.metric, args.base, resolve_device(args.device))
    references = _references(bank, args.references, stream, args.base, monitor)
    base = BaseOptions(args.base, args.device, args.tokenizer).load(bank=bank)
    size = args.size if args.size is not None else base.native_size
    settings = replace(settings, sampling=replace(sampling, size=size))
    if args.own_words:
        parts = select(bank, [(concept.name, 1.0) for concept in bank.concepts])
        for note in describe_unconfined(parts):
            monitor.message(note)
    evaluation = Evaluation(base, bank, references, metrics, settings, out, monitor, prompts)
    rows = write_report(evaluation, evaluation.run(args.trajectory))
    print(to_markdown(rows), end="")


def _images(folder: Path, monitor: Monitor) -> list[Image.Image]:
    references = read_folder(folder, "")
    for note in references.notes:
        monitor.message(note)
    return [reference.image for reference in references]


def _prompts(args: argparse.Namespace, bank: Bank, stream: Stream | None) -> dict[str, tuple[str, ...]]:
    """Read the prompts of each concept that has a file of them.

    Raises:
        UserError: two options give prompts, one that counts them has nothing to count, or a file cannot be used.
    """
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts both say what to draw: give only one of them.")
    files: dict[str, Path | str] = {}
    if args.prompts:
        files = {concept.name: args.prompts for concept in bank.concepts}
    elif stream is not None and args.prompt is None:
        entries = {concept.name: stream.find(concept.name) for concept in bank.concepts}
        files = {name: str(entry.values["prompts"]) for name, entry in entries.items() if "prompts" in entry.values}
    if args.prompts_per_concept and not files:
        raise UserError("--prompts-per-concept counts prompts of files: give --prompts, or --stream with such files.")
    words = {concept.name: concept.class_word for concept in bank.concepts}
    return {name: read_prompts(file, words[name])[: args.prompts_per_concept] for name, file in files.items()}


def _references(
    bank: Bank, folder: str | None, stream: Stream | None, base: str, monitor: Monitor
) -> dict[str, Sequence[Image.Image]]:
    """Read each concept's reference images; the concepts of the mini base come with their own."""
    if folder:
        return {concept.name: _images(Path(folder) / concept.name, monitor) for concept in bank.concepts}
    if stream is not None:
        return {concept.name: _images(stream.find(concept.name).images, monitor) for concept in bank.concepts}
    shipped = {concept.name: concept.references for concept in mini_concepts()} if base == "mini" else {}
    missing = [concept.name for concept in bank.concepts if concept.name not in shipped]
    if missing:
        raise UserError(
            f"There are no reference images for {', '.join(missing)}: give --references DIR, with one folder of "
            "images per concept, named after the concept, or --stream FILE."
        )
    return shipped
