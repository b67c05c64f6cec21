"""Compose Regions."""

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..seqlora_core.bank import Bank
from ..seqlora_core.composition.confinement import Confinement, confine_rows, texts_of
from ..seqlora_core.composition.regions import Region, with_names_of
from ..seqlora_core.composition.selection import (
    SelectedConcept,
    check_words_selected,
    describe_missing_concepts,
    parse_selections,
    select,
    trigger_words,
)
from .bank import BankType, clip_for
from .host import CLIP, ModelPatcher, confined, interface, texts
from .host import model as host_model
from .host.prompt import model_file
from .host.regional_texts import RegionalTexts
from .region import RegionsType

_NEGATIVE, _POSITIVE = 0, 1  # the sides of a text
_ADVICE = "connect positive and negative of the Compose Regions node that the model comes from"


class ComposeRegions(io.ComfyNode):
    """Confines concepts to their own words and to regions, and encodes the prompts for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRAComposeRegions",
            display_name="Compose Regions",
            search_aliases=["regional prompt", "regional lora", "attention couple", "two characters", "area"],
            description="Draws several concepts in one image, each in its own region or on its own word in the prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The base model of the bank; it may already have other LoRAs."),
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.Clip.Input("clip", tooltip="The base model's CLIP, which encodes all prompts."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the whole image shows. Concepts act in it on their own words only.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="What the image should not show."),
                RegionsType.Input(
                    "regions", optional=True, tooltip="From Region; without any, concepts act on their own words."
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Names, each with an optional strength, separated by commas or new lines: dog:1, cat:0.8. "
                    "Leave it empty to use all concepts.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out", display_name="model", tooltip="The model, for this node's positive and negative."
                ),
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt and the regions'."),
                io.Conditioning.Output("negative_out", display_name="negative", tooltip="What not to show."),
                io.String.Output(
                    "trigger_words", display_name="trigger words", tooltip="The words to use in the prompts."
                ),
                io.String.Output("report", display_name="report", tooltip="What acts where."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        bank: Bank,
        clip: CLIP,
        prompt: str,
        negative: str,
        regions: Sequence[Region] = (),
        concepts: str = "",
    ) -> io.NodeOutput:
        bank.refresh()
        host_model.check_model(model)
        confined.check_not_confined(model)
        names = [concept.name for concept in bank.concepts]
        selection = parse_selections(concepts, names) or [(name, 1.0) for name in names]
        regions = [with_names_of(bank, region) for region in regions]
        check_words_selected(bank, selection, [region.prompt for region in regions])
        texts.check_texts(clip, "")
        bank.check_base(host_model.identify(model, model_file(cls))[0])
        chosen = [bank.concept(name) for name, _ in selection]
        host_model.check_not_attached(model, chosen)
        encoding = clip_for(bank, bank.concepts, clip, "Compose Regions")
        parts = select(bank, selection)
        pairs = texts_of((negative, prompt), regions)
        encoded = RegionalTexts(encoding, pairs, [part.subject for part in parts])
        confinement = _confine(parts, pairs, encoded.rows(), regions, all_concepts=not concepts.strip())
        acting = {part.name for part in confinement.parts}
        chosen = [concept for concept in chosen if concept.name in acting]
        identity = confined.identify(confinement, chosen)
        patched = confined.confine_model(model, confinement, chosen, identity, _ADVICE)
        sides = [encoded.conditioning(side, confinement, identity) for side in (_POSITIVE, _NEGATIVE)]
        notes = describe_missing_concepts(bank, selection, [prompt, negative])
        words, report = trigger_words(bank, selection), "\n".join([*_describe(confinement), *notes])
        return io.NodeOutput(patched, *sides, words, report, ui=interface.node_text(cls, f"{words}\n{report}"))


def _confine(
    parts: Sequence[SelectedConcept],
    pairs: Sequence[tuple[str, str]],
    rows: Tensor,
    regions: Sequence[Region],
    all_concepts: bool,
) -> Confinement:
    """Confine concepts to regions and words; of all concepts of a bank, only those that act are kept."""
    if all_concepts:
        named = rows.flatten(0, 2).amax(0) > 0
        in_regions = {name for region in regions for name, _ in region.concepts or ()}
        kept = [i for i, part in enumerate(parts) if named[i] or part.name in in_regions]
        parts, rows = [parts[i] for i in kept], rows[..., kept]
    return confine_rows(parts, pairs, rows, regions)


def _describe(confinement: Confinement) -> list[str]:
    """What acts where, one line per text."""
    lines = []
    for number, pair in enumerate(confinement.texts):
        acting = confinement.text[number].abs().amax((0, 1)) > 0
        names = [part.name for part, acts in zip(confinement.parts, acting.tolist(), strict=True) if acts]
        where = f"region {number} ({pair[_POSITIVE].strip()})" if number else "own words of the prompt"
        lines.append(f"{where}: {', '.join(names) or 'no concept'}")
    return [*lines, *confinement.notes]
