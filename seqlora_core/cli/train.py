"""The command `train`: learn one concept from a folder of images."""

import argparse
from dataclasses import replace

from ..bank import Bank, Concept, ConceptSpec
from ..data.encoding import cut_prompts, encode_concept
from ..data.reference_folder import ReferenceFolder, read_folder
from ..devices import best_dtype, resolve_device
from ..errors import Cancelled, TrainingExploded
from ..training.checkpoint import is_of_rare_word
from ..training.config import TrainingConfig
from ..training.methods import resolve
from ..training.plan import trained_subject
from ..training.trainer import CHECKPOINT_SECONDS, RunOptions, train_concept
from .options import BaseOptions, add_bank, add_base, add_device, add_words, concept_spec, positive
from .settings import add_settings, requested_config
from .terminal import TerminalMonitor

_WAYS_OUT = (
    "choose another --name, or give --on-existing replace to train it again, or --on-existing skip to leave it as it is"
)


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="learn one concept from a folder of images",
        description="Learn one concept from a folder of images and add it to the bank.",
        usage="%(prog)s --base BASE --bank DIR --name NAME --images DIR --class-word WORD [options]",
    )
    what = command.add_argument_group("what to train")
    add_base(what, purpose="to train on")
    add_bank(what, text="folder of the bank, created if it does not exist")
    add_words(what, token="word that stands for the concept in prompts")
    what.add_argument(
        "--images", required=True, metavar="DIR", help="folder of reference images, with or without captions"
    )
    what.add_argument(
        "--prior-images", metavar="DIR", help="folder of other images of the class, for prior preservation"
    )
    what.add_argument(
        "--on-existing",
        choices=("error", "skip", "replace"),
        default="error",
        help="what to do if the bank already has a concept of that name (default: error)",
    )
    what.add_argument("--resume", action="store_true", help="continue an interrupted training run of this concept")
    what.add_argument(
        "--store-anyway", action="store_true", help="store the concept even if the loss ended far above where it began"
    )
    basics = command.add_argument_group("basics")
    resources = command.add_argument_group("speed and memory")
    add_device(resources)
    add_settings(basics, resources, command.add_argument_group("method (defaults are fine)"))
    resources.add_argument(
        "--checkpoint-seconds",
        type=positive,
        default=CHECKPOINT_SECONDS,
        metavar="SECONDS",
        help=f"seconds between checkpoints (default: {CHECKPOINT_SECONDS:g})",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    spec, requested = concept_spec(args.name, args.token, args.class_word), requested_config(vars(args))
    if Bank.exists(args.bank):
        bank = Bank.open(args.bank)
        if args.on_existing == "skip" and (existing := bank.manifest.find(spec.name)):
            print(f"The bank already has a concept {existing.name!r}; nothing to do.")
            return
        if args.on_existing == "error":
            bank.require_free(spec.name, _WAYS_OUT)
    monitor = TerminalMonitor()
    try:
        bank, concept = _train(args, spec, requested, monitor)
    except Cancelled as stop:
        raise Cancelled(monitor.stopped_at) from stop
    except TrainingExploded as error:
        raise TrainingExploded(f"{error} To store it as it is, add --resume --store-anyway.") from error
    metrics = concept.metrics
    print(
        f"Learned {concept.name!r} as '{concept.subject}' in {metrics['seconds']:.0f} s: "
        f"loss {metrics['first_loss']:.4f} -> {metrics['final_loss']:.4f}. It is in {bank.folder / concept.file}."
    )


def _goes_on_without_word(bank: str, name: str) -> bool:
    """Whether an unfinished run of a version that learned no words waits to be resumed."""
    return Bank.exists(bank) and is_of_rare_word(Bank.open(bank).checkpoint_path(name))


def _train(
    args: argparse.Namespace, spec: ConceptSpec, requested: TrainingConfig, monitor: TerminalMonitor
) -> tuple[Bank, Concept]:
    if args.resume and requested.token_vectors is None and _goes_on_without_word(args.bank, spec.name):
        requested = replace(requested, token_vectors=0)
    dtype = requested.dtype or best_dtype(resolve_device(args.device))
    references = read_folder(args.images, trained_subject(spec, requested), token=spec.token)
    prior = read_folder(args.prior_images, spec.class_word) if args.prior_images else ReferenceFolder(())
    monitor.stage(f"loading {args.base}")
    base = BaseOptions(args.base, args.device, args.tokenizer).load(dtype)
    config = resolve(requested, base.native_size, dtype)
    base.check_resolution(config.resolution)
    bank = Bank.open_or_create(args.bank, base.identity, base.layers)
    for note in (*references.notes, *prior.notes, *cut_prompts(base, [*references, *prior])):
        monitor.message(note)
    monitor.message(f"{references.summary}; {config}")
    options = RunOptions(
        resume=args.resume,
        replace=args.on_existing == "replace",
        store_anyway=args.store_anyway,
        checkpoint_seconds=args.checkpoint_seconds,
        thumbnail=references[0].image,
        vocabulary=base.pipeline.tokenizer.get_vocab(),
    )
    with monitor.watching():
        concept = train_concept(
            base.denoiser(),
            lambda prompts, words: encode_concept(
                base,
                references,
                config.resolution,
                prior,
                prompts,
                crop=config.crop,
                flip=config.flip,
                words=words,
                monitor=monitor,
            ),
            bank,
            spec,
            config,
            monitor,
            options,
            requested,
            base.text_encoder,
        )
    return bank, concept
