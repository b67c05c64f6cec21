"""The commands `compose`, which writes several concepts into one LoRA file, and `generate`, which uses concepts."""

import argparse
from pathlib import Path

from ..bank import Bank
from ..composition.concatenation import compose
from ..composition.confined_sampling import confine_on, generate_confined
from ..composition.fusion import FUSIONS, WITHOUT_BASE, FusionSettings, fuse
from ..composition.fusion.base_source import BaseSource
from ..composition.lora_files import check_fits, load_composed, load_words, save_composed, save_words
from ..composition.regions import describe_idle_regions, with_names_of
from ..composition.selection import (
    check_words_selected,
    describe_missing_concepts,
    describe_trained_on_own_words,
    parse_selection,
    select,
)
from ..data.listing import counted
from ..data.words import NO_WORDS
from ..devices import best_dtype, resolve_device
from ..errors import UserError
from ..files import check_writable
from ..model.adapters import sum_adapters
from ..model.sampling import SamplingSettings, generate
from ..training.config import DTYPES
from .options import (
    BaseOptions,
    add_bank,
    add_base,
    add_concepts,
    add_device,
    add_own_words,
    add_probing,
    add_sampling,
    count,
    location,
)
from .output import check_output, check_png, save_image
from .regions import add_regions, read_regions


def add_compose(commands: argparse._SubParsersAction) -> None:
    """Add the command that writes several concepts into one LoRA file."""
    command = commands.add_parser("compose", help="write several concepts into one LoRA file")
    add_bank(command)
    add_concepts(command, required=True)
    command.add_argument("--out", required=True, type=location, metavar="FILE.safetensors", help="LoRA file to write")
    command.add_argument(
        "--fusion",
        choices=tuple(FUSIONS),
        default="sum",
        help=f"how to combine the concepts; all except {', '.join(WITHOUT_BASE)} need --base (default: sum)",
    )
    command.add_argument(
        "--rank", type=count, metavar="N", help="largest rank of the file, to make it smaller (default: no limit)"
    )
    command.add_argument(
        "--embeddings",
        type=location,
        metavar="DIR",
        help="also write the learned word of each concept, as a textual inversion, here",
    )
    command.add_argument(
        "--bundle",
        action="store_true",
        help="also put the learned words into the LoRA file, for programs that read it",
    )
    add_base(command, required=False, purpose="for the fusions that need one")
    add_device(command)
    add_probing(command)
    command.set_defaults(run=_compose)


def _compose(args: argparse.Namespace) -> None:
    bank, selection = Bank.open(args.bank), [parse_selection(text) for text in args.concept]
    out = check_output(args.out, args.bank, args.base)
    if out.suffix != ".safetensors":
        raise UserError(f"The output must be a .safetensors file, not {out.name!r}.")
    check_writable(out)
    folder = check_output(args.embeddings, args.bank, args.base) if args.embeddings else None
    if folder:
        check_writable(folder / "word.safetensors")
    parts = select(bank, selection)
    words = {word: vectors for part in parts for word, vectors in part.words.items()}
    fusion = FUSIONS[args.fusion]
    settings = FusionSettings(rank=args.rank, seed=args.seed, sampling_steps=args.sampling_steps)
    source = None
    if fusion.reads_base and args.base:
        source = BaseSource(BaseOptions(args.base, args.device, args.tokenizer).load(bank=bank), settings)
    for note in describe_trained_on_own_words(bank, selection):
        print(note)
    fused = fuse(fusion, parts, settings, source)
    save_composed(bank, selection, out, fused.adapters, fusion.name, words if args.bundle else NO_WORDS)
    print(
        f"Wrote {out}: {counted(len(selection), 'concept')}, rank {fused.rank}, by {fusion.name} "
        f"in {fused.seconds:.1f} s with {fused.peak_bytes / 2**20:.0f} MiB."
    )
    if folder:
        for word, path in zip(words, save_words(words, folder), strict=True):
            print(f"  Wrote the word {word!r}: {path} (in ComfyUI, write embedding:{path.stem} in prompts).")
    if (args.embeddings or args.bundle) and not words:
        print("  None of these concepts has a learned word.")
    if fused.kept_energy < 1:
        print(
            f"  Limiting the rank keeps at least {fused.kept_energy:.2%} of the squared norm of the update in every "
            "layer."
        )


def add_generate(commands: argparse._SubParsersAction) -> None:
    """Add the command that makes an image."""
    command = commands.add_parser("generate", help="generate an image, with or without concepts")
    add_base(command)
    add_device(command)
    add_bank(command, required=False)
    add_concepts(command, required=False)
    command.add_argument(
        "--lora", type=location, metavar="FILE.safetensors", help="LoRA file written by compose, to use as well"
    )
    command.add_argument("--prompt", required=True, help="what the image shows, with the words of the concepts")
    command.add_argument("--negative-prompt", default="", metavar="PROMPT", help="what the image should not show")
    command.add_argument("--out", required=True, type=location, metavar="PNG", help="image file to write")
    add_own_words(command)
    add_regions(command)
    add_sampling(command)
    command.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="precision of the UNet (default: auto, the device's fastest safe one)",
    )
    command.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    selection = [parse_selection(text) for text in args.concept]
    if selection and not args.bank:
        raise UserError("--concept names a concept of a bank: give --bank too.")
    if args.own_words and not selection:
        raise UserError("--own-words confines concepts of a bank: give --concept too.")
    regions = read_regions(args)
    bank = Bank.open(args.bank) if args.bank else None
    if bank and regions:
        regions = [with_names_of(bank, region) for region in regions]
        check_words_selected(bank, selection, [region.prompt for region in regions])
    confined = bool(args.own_words or regions)
    parts = select(bank, selection) if selection and confined else []
    selected = compose(bank, selection) if selection and not confined else {}
    file, words = (load_composed(Path(args.lora)), load_words(Path(args.lora))) if args.lora else ({}, {})
    words = {**words, **(bank.words() if bank else {})}
    out = check_png(args.out, args.bank, args.base, args.lora)
    dtype = best_dtype(resolve_device(args.device)) if args.dtype == "auto" else args.dtype
    base = BaseOptions(args.base, args.device, args.tokenizer).load(dtype, bank)
    check_fits(file, base.layers, args.lora)
    settings = SamplingSettings(
        steps=args.steps,
        size=args.size if args.size is not None else base.native_size,
        guidance=args.guidance,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
    )
    if bank:
        notes = describe_missing_concepts(bank, selection, [args.prompt, args.negative_prompt])
        for note in [*notes, *([] if confined else describe_trained_on_own_words(bank, selection))]:
            print(note)
    if confined:
        confinement = confine_on(base, args.prompt, parts, settings, words, regions, args.own_words)
        progresses = [step / settings.steps for step in range(settings.steps)]
        for note in [*confinement.notes, *describe_idle_regions(regions, progresses)]:
            print(note)
        (image,) = generate_confined(base, confinement, settings, words, file)
    else:
        (image,) = generate(base, args.prompt, sum_adapters([(selected, 1.0), (file, 1.0)]), settings, words)
    save_image(image, out)
    print(f"Wrote {out}.")
