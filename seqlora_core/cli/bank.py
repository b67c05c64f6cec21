"""The commands on a bank and its concepts: `list`, `inspect`, `import`, `remove` and `rename`."""

import argparse
from pathlib import Path

from ..bank import Bank
from ..bank.importing import describe_import, import_lora, word_in
from ..bank.inspection import Inspection, inspect
from ..composition.selection import select
from ..data.listing import counted
from ..data.prompts import subject_prompt
from ..errors import UserError
from ..evaluation.interference import Diagnosis, diagnose
from ..model.base import Base
from ..model.sampling import inputs_while_sampling
from ..plots import crosstalk_map
from .options import BaseOptions, add_bank, add_base, add_device, add_probing, add_words, concept_spec, location
from .output import check_png, print_json, save_image
from .terminal import TerminalMonitor


def add_list(commands: argparse._SubParsersAction) -> None:
    """Add the command that lists the concepts of a bank in training order."""
    command = commands.add_parser("list", help="list the concepts of a bank")
    add_bank(command)
    _add_json(command)
    command.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> None:
    bank = Bank.open(args.bank)
    if args.json:
        print_json({"base": bank.manifest.base.name, "concepts": [concept.as_dict() for concept in bank.concepts]})
        return
    print(f"{counted(len(bank.concepts), 'concept')} on {bank.manifest.base.name}")
    for concept in bank.concepts:
        print(f"  {concept.name}: '{concept.subject}', rank {concept.rank}, {concept.method}")


def add_inspect(commands: argparse._SubParsersAction) -> None:
    """Add the command that reports orthogonality, free capacity, integrity and, with a base model, interference."""
    command = commands.add_parser("inspect", help="report orthogonality, free capacity and damaged files of a bank")
    add_bank(command)
    _add_json(command)
    add_base(command, required=False, purpose="to measure the interference between the concepts on")
    add_device(command)
    command.add_argument(
        "--plot", type=location, metavar="PNG", help="image file for the interference measured on --base"
    )
    add_probing(command)
    command.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> None:
    if args.plot and not args.base:
        raise UserError("--plot draws what is measured on the base model: give --base too.")
    plot = check_png(args.plot, args.bank, args.base) if args.plot else None
    bank = Bank.open(args.bank)
    result = inspect(bank)
    diagnosis = None
    if args.base and bank.concepts and not result.problems:
        base = BaseOptions(args.base, args.device, args.tokenizer).load(bank=bank)
        diagnosis = _diagnose(base, bank, args.seed, args.sampling_steps)
    if args.json:
        document = _inspection_document(bank, result)
        print_json({**document, "interference": diagnosis.as_dict()} if diagnosis else document)
    else:
        _print_inspection(bank, result)
        if diagnosis:
            _print_diagnosis(diagnosis)
    if diagnosis and plot:
        save_image(crosstalk_map(diagnosis.concepts, diagnosis.crosstalk().tolist()), plot)
    if result.problems:
        raise UserError(" ".join(result.problems))


def _diagnose(base: Base, bank: Bank, seed: int, steps: int) -> Diagnosis:
    return diagnose(
        select(bank, [(concept.name, 1.0) for concept in bank.concepts]),
        lambda part: inputs_while_sampling(
            base, subject_prompt(part.subject), part.scaled(), seed=seed, steps=steps, words=part.words
        ),
    )


def _inspection_document(bank: Bank, result: Inspection) -> dict:
    return {
        "ok": result.ok,
        "max_overlap": result.max_overlap,
        "base": bank.manifest.base.name,
        "concepts": [concept.as_dict() for concept in bank.concepts],
        "pairs": [{"concepts": list(pair), "overlap": value} for pair, value in result.pairs.items()],
        "layers": result.layers,
        "problems": result.problems,
    }


def _print_inspection(bank: Bank, result: Inspection) -> None:
    print(f"{counted(len(bank.concepts), 'concept')} on {bank.manifest.base.name}: {'ok' if result.ok else 'NOT OK'}")
    for line in result.tables():
        print(f"  {line}")


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print one row and one forecast per concept; what was measured per layer is in the JSON document."""
    rows = diagnosis.as_dict()["concepts"]
    width = max(len("concept"), *(len(row["name"]) for row in rows))
    print(f"  {'concept':{width}}  energy in its basis  effective rank of the rest  crosstalk of later concepts")
    for row in rows:
        print(
            f"  {row['name']:{width}}  {row['captured_share']:>19.1%}  {row['effective_rank']:>26.1f}"
            f"  {row['forecast']:>27.2%}"
        )
    for line in diagnosis.sentences():
        print(f"  {line}")


def add_import(commands: argparse._SubParsersAction) -> None:
    """Add the command that imports the attention layers of any SD1.5 LoRA file into a bank."""
    command = commands.add_parser("import", help="import any SD1.5 LoRA file or textual inversion into a bank")
    add_bank(command, text="folder of the bank; --base creates it if it does not exist")
    command.add_argument(
        "--file",
        required=True,
        type=location,
        metavar="FILE.safetensors",
        help="LoRA file or textual inversion, from any tool",
    )
    command.add_argument(
        "--embedding",
        type=location,
        metavar="FILE.safetensors",
        help="textual inversion whose vectors become the concept's word",
    )
    add_words(command, token="word that the LoRA was trained with")
    command.add_argument(
        "--project",
        action="store_true",
        help="keep only what is orthogonal to the concepts of the bank, and report how much that is",
    )
    command.add_argument(
        "--on-existing",
        choices=("error", "replace"),
        default="error",
        help="what to do if the bank already has another concept of that name (default: error)",
    )
    add_base(command, required=False, purpose="of a new bank")
    add_device(command)
    command.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> None:
    bank = Bank.open(args.bank) if Bank.exists(args.bank) or args.base is None else None
    base = BaseOptions(args.base, args.device, args.tokenizer).load(bank=bank) if args.base else None
    if bank is None:
        bank = Bank.open_or_create(args.bank, base.identity, base.layers)
    path, embedding = Path(args.file), Path(args.embedding) if args.embedding else None
    word = word_in(embedding or path) or (word_in(path) if embedding else "")
    spec = concept_spec(args.name, args.token or word or None, args.class_word)
    concept = import_lora(
        bank,
        path,
        spec,
        args.project,
        args.on_existing == "replace",
        TerminalMonitor(),
        embedding,
        base.text_encoder.fingerprint() if base else "",
    )
    print(describe_import(bank, concept))


def add_remove(commands: argparse._SubParsersAction) -> None:
    """Add the command that removes a concept from a bank."""
    command = commands.add_parser("remove", help="remove a concept from a bank")
    add_bank(command)
    command.add_argument("--name", required=True, help="name of the concept to remove")
    command.set_defaults(run=_remove)


def _remove(args: argparse.Namespace) -> None:
    concept = Bank.open(args.bank).remove(args.name)
    print(f"Removed {concept.name!r}; later concepts can use its directions again.")


def add_rename(commands: argparse._SubParsersAction) -> None:
    """Add the command that renames a concept."""
    command = commands.add_parser("rename", help="rename a concept")
    add_bank(command)
    command.add_argument("--name", required=True, help="current name of the concept")
    command.add_argument("--to", required=True, metavar="NEW_NAME", help="new name of the concept; its token stays")
    command.set_defaults(run=_rename)


def _rename(args: argparse.Namespace) -> None:
    concept = Bank.open(args.bank).rename(args.name, args.to)
    print(f"{args.name!r} is now {concept.name!r}; its token is still {concept.token!r}.")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
