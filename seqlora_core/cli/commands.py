"""What the commands of the command line do; `cli` reads their arguments."""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..bank import Bank, ConceptSpec
from ..bank.inspection import Inspection, inspect
from ..composition.concatenation import compose
from ..composition.fusion import FUSIONS, FusionSettings, fuse
from ..composition.lora_files import check_fits, load_composed, save_composed
from ..composition.selection import parse_selection, select
from ..data.prompts import subject_prompt
from ..errors import UserError
from ..files import check_writable
from ..model.adapters import sum_adapters
from ..plots import crosstalk_map
from ..training.config import TrainingConfig


def train(args: Namespace) -> None:
    """Learn one concept from a folder of images and add it to the bank."""
    from ..bank.names import default_token
    from .settings import requested_config

    token = args.token if args.token is not None else default_token(args.name)
    spec, requested = ConceptSpec(args.name, token, args.class_word), requested_config(args)
    if Bank.exists(args.bank):
        bank = Bank.open(args.bank)
        if args.on_existing == "skip" and (existing := bank.manifest.find(spec.name)):
            print(f"The bank already has {existing.name!r}; nothing to do.")
            return
        if args.on_existing == "error":
            bank.require_free(spec.name)
    _train(args, requested, spec)


def _train(args: Namespace, requested: TrainingConfig, spec: ConceptSpec) -> None:
    from ..data.encoding import encode_concept
    from ..data.images import read_folder
    from ..devices import best_dtype, resolve_device
    from ..model.base import load_base
    from ..training.methods import resolve
    from ..training.trainer import RunOptions, train_concept
    from .terminal import TerminalMonitor, quiet_libraries

    dtype = requested.dtype or best_dtype(resolve_device(args.device))
    references = read_folder(args.images, spec.subject)
    prior = read_folder(args.prior_images, spec.class_word) if args.prior_images else []
    quiet_libraries()
    base = load_base(args.base, args.device, dtype, args.tokenizer)
    config = resolve(requested, base.native_size, dtype)
    base.check_resolution(config.resolution)
    bank = Bank.open_or_create(args.bank, base.identity, base.layers)
    monitor = TerminalMonitor()
    monitor.message(f"{len(references)} images; {config}")
    options = RunOptions(
        resume=args.resume,
        replace=args.on_existing == "replace",
        checkpoint_seconds=args.checkpoint_seconds,
        thumbnail=references[0].image,
    )
    with monitor.watching():
        concept = train_concept(
            base.denoiser(),
            lambda prompts: encode_concept(
                base, references, config.resolution, prior, prompts, crop=config.crop, flip=config.flip
            ),
            bank,
            spec,
            config,
            monitor,
            options,
            requested,
        )
    metrics = concept.metrics
    print(
        f"Learned {concept.name!r} as '{spec.subject}' in {metrics['seconds']:.0f} s: "
        f"loss {metrics['first_loss']:.4f} -> {metrics['final_loss']:.4f}. It is in {bank.folder / concept.file}."
    )


def demo(args: Namespace) -> None:
    """Learn a few concepts on the mini base and draw what becomes of them."""
    from .demo import run_demo
    from .terminal import TerminalMonitor, quiet_libraries

    out = Path(args.out)
    quiet_libraries()
    monitor = TerminalMonitor()
    with monitor.watching():
        report = run_demo(out, args.concepts, args.seed, monitor)
    for concept in report["concepts"]:
        figures = concept["identity"]
        print(
            f"{concept['name']}: identity {figures['base']:.2f} before, "
            f"{figures['after_training']:.2f} right after training, {figures['after_all']:.2f} after all"
        )
    print(
        f"Forgetting {report['forgetting']:.3f}, largest overlap {report['max_overlap']:.0e}. See {out / 'grid.png'}."
    )


def list_concepts(args: Namespace) -> None:
    """Print the concepts of a bank in training order."""
    bank = Bank.open(args.bank)
    if args.json:
        _print_json({"base": bank.manifest.base.name, "concepts": [concept.as_dict() for concept in bank.concepts]})
        return
    print(f"{len(bank.concepts)} concepts on {bank.manifest.base.name}")
    for concept in bank.concepts:
        print(f"  {concept.name}: '{concept.subject}', rank {concept.rank}, {concept.method}")


def inspect_bank(args: Namespace) -> None:
    """Print orthogonality, capacity, integrity and, with a base, interference; UserError where something is wrong."""
    if args.plot and not args.base:
        raise UserError("--plot draws what is measured on the base: give --base too.")
    if args.plot:
        _check_png(args.plot)
    bank = Bank.open(args.bank)
    result = inspect(bank)
    diagnosis = _diagnose(args, bank) if args.base and bank.concepts and not result.problems else None
    if args.json:
        document = _inspection_document(bank, result)
        _print_json({**document, "interference": diagnosis.as_dict()} if diagnosis else document)
    else:
        _print_inspection(bank, result)
        if diagnosis:
            _print_diagnosis(diagnosis)
    if diagnosis and args.plot:
        _save_picture(crosstalk_map(diagnosis.concepts, diagnosis.crosstalk().tolist()), Path(args.plot))
    if result.problems:
        raise UserError(" ".join(result.problems))


def _print_diagnosis(diagnosis) -> None:
    """A row a concept, then a line of forecast each; what is measured in each layer is in the JSON."""
    rows = diagnosis.as_dict()["concepts"]
    width = max(len("concept"), *(len(row["name"]) for row in rows))
    print(f"  {'concept':{width}}  energy in its basis  effective rank of the rest  crosstalk of later ones")
    for row in rows:
        print(
            f"  {row['name']:{width}}  {row['captured_share']:>19.1%}  {row['effective_rank']:>26.1f}"
            f"  {row['forecast']:>23.2%}"
        )
    for line in diagnosis.sentences():
        print(f"  {line}")


def _diagnose(args: Namespace, bank: Bank):
    from ..evaluation.interference import diagnose
    from ..model.sampling import inputs_while_sampling

    base = _load_bank_base(args, bank)
    settings = {"seed": args.seed, "steps": args.sampling_steps}
    return diagnose(
        select(bank, [(concept.name, 1.0) for concept in bank.concepts]),
        lambda part: inputs_while_sampling(base, subject_prompt(part.subject), part.scaled(), **settings),
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
    print(f"{len(bank.concepts)} concepts on {bank.manifest.base.name}: {'ok' if result.ok else 'NOT OK'}")
    for line in result.tables():
        print(f"  {line}")


def compose_concepts(args: Namespace) -> None:
    """Fuse the selected concepts into one LoRA file."""
    bank, selection = Bank.open(args.bank), [parse_selection(text) for text in args.concept]
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise UserError(f"The output must be a .safetensors file, not {out.name!r}.")
    check_writable(out)
    parts = select(bank, selection)
    fusion = FUSIONS[args.fusion]
    settings = FusionSettings(rank=args.rank, seed=args.seed, sampling_steps=args.sampling_steps)
    source = _source(args, bank, settings) if fusion.reads_base and args.base else None
    fused = fuse(fusion, parts, settings, source)
    save_composed(bank, selection, out, fused.adapters, fusion.name)
    print(
        f"Wrote {out}: {len(selection)} concepts, rank {fused.rank}, by {fusion.name} "
        f"in {fused.seconds:.1f} s with {fused.peak_bytes / 2**20:.0f} MiB."
    )
    if fused.kept_energy < 1:
        print(f"  The cut to this rank keeps {fused.kept_energy:.2%} of the update in the layer that loses most.")


def _source(args: Namespace, bank: Bank, settings):
    from ..composition.fusion.base_source import BaseSource

    return BaseSource(_load_bank_base(args, bank), settings)


def _load_bank_base(args: Namespace, bank: Bank):
    from ..model.base import load_base
    from .terminal import quiet_libraries

    quiet_libraries()
    base = load_base(args.base, args.device, "float32", args.tokenizer)
    bank.check_base(base.identity)
    return base


def generate_picture(args: Namespace) -> None:
    """Sample one picture and write it as PNG."""
    from ..devices import best_dtype, resolve_device
    from ..model.base import load_base
    from .terminal import quiet_libraries

    selection = [parse_selection(text) for text in args.concept]
    if bool(selection) != bool(args.bank):
        raise UserError("--bank and --concept belong together: give both, or neither for the plain base.")
    bank = Bank.open(args.bank) if args.bank else None
    adapters = compose(bank, selection) if bank else None
    file = load_composed(Path(args.lora)) if args.lora else {}
    out = _check_png(args.out)
    dtype = best_dtype(resolve_device(args.device)) if args.dtype == "auto" else args.dtype
    quiet_libraries()
    base = load_base(args.base, args.device, dtype, args.tokenizer)
    if bank:
        bank.check_base(base.identity)
    check_fits(file, base.layers, args.lora)
    adapters = sum_adapters([(adapters or {}, 1.0), (file, 1.0)])
    _sample(args, base, adapters, out)


def _sample(args: Namespace, base, adapters, out: Path) -> None:
    from ..model.sampling import SamplingSettings, generate

    settings = SamplingSettings(
        steps=args.steps,
        size=args.size if args.size is not None else base.native_size,
        guidance=args.guidance,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
    )
    picture = generate(base, args.prompt, adapters, settings)[0]
    _save_picture(picture, out)
    print(f"Wrote {out}.")


def _check_png(path: str) -> Path:
    out = Path(path)
    if out.suffix.lower() != ".png":
        raise UserError(f"The output must be a .png file, not {out.name!r}.")
    check_writable(out)
    return out


def _save_picture(picture: Image.Image, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror}.") from error


def import_concept(args: Namespace) -> None:
    """Take the attention layers of any SD1.5 LoRA file into a bank."""
    from ..bank.importing import describe_import, import_lora
    from ..bank.names import default_token
    from .terminal import TerminalMonitor

    token = args.token if args.token is not None else default_token(args.name)
    spec = ConceptSpec(args.name, token, args.class_word)
    bank = _bank_to_import_into(args)
    concept = import_lora(bank, Path(args.file), spec, args.project, args.on_existing == "replace", TerminalMonitor())
    print(describe_import(bank, concept))


def _bank_to_import_into(args: Namespace) -> Bank:
    if Bank.exists(args.bank) or args.base is None:
        return Bank.open(args.bank)
    from ..model.base import load_base
    from .terminal import quiet_libraries

    quiet_libraries()
    base = load_base(args.base, args.device, "float32", args.tokenizer)
    return Bank.open_or_create(args.bank, base.identity, base.layers)


def evaluate_bank(args: Namespace) -> None:
    """Draw all concepts of a bank after several stages, and score them."""
    from ..devices import resolve_device
    from ..evaluation.metrics import load_metrics
    from ..evaluation.protocol import Evaluation, EvaluationSettings
    from ..evaluation.report import write_report
    from ..evaluation.tables import to_markdown
    from ..model.sampling import SamplingSettings
    from .terminal import TerminalMonitor

    bank = Bank.open(args.bank)
    if not bank.concepts:
        raise UserError("The bank has no concept yet: train one first.")
    sampling = SamplingSettings(steps=args.steps, guidance=args.guidance, seed=args.seed, count=args.images)
    settings = EvaluationSettings(args.prompt, sampling)
    check_writable(Path(args.out) / "report.json")
    metrics = load_metrics(args.metric, args.base, resolve_device(args.device))
    references = _references(args, bank)
    base = _load_bank_base(args, bank)
    settings = EvaluationSettings(args.prompt, replace(sampling, size=args.size or base.native_size))
    evaluation = Evaluation(base, bank, references, metrics, settings, Path(args.out), TerminalMonitor())
    rows = write_report(evaluation, evaluation.run(args.trajectory))
    print(to_markdown(rows), end="")


def _references(args: Namespace, bank: Bank) -> dict:
    """From a folder with a folder of pictures a concept; the mini base's concepts bring theirs along."""
    from ..data.images import read_folder
    from ..mini import mini_concepts

    if args.references:
        return {
            concept.name: [reference.image for reference in read_folder(Path(args.references) / concept.name, "")]
            for concept in bank.concepts
        }
    shipped = {concept.name: concept.references for concept in mini_concepts()} if args.base == "mini" else {}
    missing = [concept.name for concept in bank.concepts if concept.name not in shipped]
    if missing:
        raise UserError(
            f"There are no reference pictures for {', '.join(missing)}: give --references DIR, with a folder of "
            "pictures for each concept, named like it."
        )
    return shipped


def remove_concept(args: Namespace) -> None:
    """Take a concept out of a bank."""
    concept = Bank.open(args.bank).remove(args.name)
    print(f"Removed {concept.name!r}; its directions are free again.")


def rename_concept(args: Namespace) -> None:
    """Give a concept another name."""
    concept = Bank.open(args.bank).rename(args.name, args.to)
    print(f"{args.name!r} is now {concept.name!r}; its token is still {concept.token!r}.")


def _print_json(document: dict) -> None:
    json.dump(document, sys.stdout, indent=1)  # ASCII, which every terminal and file has
    sys.stdout.write("\n")
