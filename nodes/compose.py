"""Compose Concepts."""

import time

import torch
from comfy_api.latest import io

from ..seqlora_core.bank import Bank, Concept
from ..seqlora_core.bank.inspection import OVERLAP_LIMIT, largest_overlaps
from ..seqlora_core.composition.concatenation import ConcatenatedFactors, concatenate
from ..seqlora_core.composition.confinement import confine_to_own_words
from ..seqlora_core.composition.fusion import FUSIONS, Fused, Fusion, FusionSettings, fuse
from ..seqlora_core.composition.selection import (
    SelectedConcept,
    describe_trained_on_own_words,
    parse_selections,
    select,
    trigger_words,
)
from ..seqlora_core.errors import UserError
from ..seqlora_core.model.adapters import Adapter
from ..seqlora_core.model.sd15 import SD15
from ..seqlora_core.training.config import EVERYTHING, OWN_WORDS
from ..seqlora_core.training.plan import describe_full_layers, full_layers
from .bank import BankType, clip_for
from .host import CLIP, ModelPatcher, confined, interface, texts
from .host import model as host_model
from .host.own_words import OwnWords, noting
from .host.prompt import model_file
from .host.source import HostSource


class ComposeConcepts(io.ComfyNode):
    """Sums concepts into one patch on MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRAComposeConcepts",
            display_name="Compose Concepts",
            search_aliases=["lora stack", "multi lora", "merge loras", "combine concepts"],
            description="Adds concepts of a bank to a model as one LoRA patch, each with its own strength.",
            inputs=[
                io.Model.Input("model", tooltip="The base model of the bank; it may already have other LoRAs."),
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip="Names, each with an optional strength, separated by commas or new lines: dog:1, cat:0.8. "
                    "Leave it empty to use all concepts.",
                ),
                interface.advanced(
                    io.Combo.Input,
                    "fusion",
                    options=list(FUSIONS),
                    default="sum",
                    optional=True,
                    tooltip="How the concepts are combined. sum suits concepts trained by SeqLoRA; the others suit "
                    "independently trained LoRAs. gradient-fusion, loraclr, custom-diffusion and ssr-merge are slow "
                    "and need clip.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The base model's CLIP, for the output clip and for the fusions that encode trigger words.",
                ),
                interface.advanced(
                    io.Combo.Input,
                    "acts_on",
                    options=[EVERYTHING, OWN_WORDS],
                    default=EVERYTHING,
                    optional=True,
                    tooltip="own-words: each concept acts only on its own word in prompts, which keeps several in one "
                    "image apart; encode all prompts with the output clip. It needs clip.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The model with the concepts."),
                io.String.Output(
                    "trigger_words", display_name="trigger words", tooltip="The words to use in the prompt."
                ),
                io.String.Output("report", display_name="report", tooltip="How far the selected concepts overlap."),
                io.Clip.Output(
                    "clip_out",
                    display_name="clip",
                    tooltip="The connected CLIP that knows the words of the selected concepts, for prompts.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        bank: Bank,
        concepts: str,
        fusion: str = "sum",
        clip: CLIP | None = None,
        acts_on: str = EVERYTHING,
    ) -> io.NodeOutput:
        bank.refresh()
        host_model.check_model(model)
        chosen, own_words = FUSIONS[fusion], acts_on == OWN_WORDS
        if chosen.reads_base:
            _check_clip(clip, fusion)
        if own_words:
            _check_own_words(model, clip, chosen)
        bank.check_base(host_model.identify(model, model_file(cls))[0])
        started = time.monotonic()
        names = [concept.name for concept in bank.concepts]
        selection = parse_selections(concepts, names) or [(name, 1.0) for name in names]
        selected = [bank.concept(name) for name, _ in selection]
        host_model.check_not_attached(model, selected)
        knowing = clip_for(bank, selected, clip, "Compose Concepts")
        weights = [strength for _, strength in selection]
        weights = weights if chosen.weigh is None else chosen.weigh(weights)
        weighed = [(name, weight) for (name, _), weight in zip(selection, weights, strict=True)]
        stacks = concatenate(bank, weighed)
        adapters, memory = {layer: stacked.adapter for layer, stacked in stacks.items()}, ""
        if chosen.weigh is None:
            fused = _fuse(chosen, bank, selection, model, clip)
            adapters, memory = fused.adapters, f" with {fused.peak_bytes / 2**20:.0f} MB"
        lines = [_report(bank, selection, stacks)]
        if own_words:
            patched, knowing, notes = _confine_to_own_words(model, knowing, select(bank, weighed), selected)
            lines += ["Each concept acts on its own word only.", *notes]
        else:
            patched = host_model.apply_adapters(model, adapters, selected)
            lines += describe_trained_on_own_words(bank, selection)
        size = _megabytes(adapters)
        lines.append(f"Composed in {time.monotonic() - started:.1f} s{memory}; the patch takes {size:.1f} MB.")
        words, report = trigger_words(bank, selection), "\n".join(lines)
        return io.NodeOutput(patched, words, report, knowing, ui=interface.node_text(cls, f"{words}\n{report}"))


def _check_clip(clip: CLIP | None, fusion: str) -> None:
    if clip is None:
        raise UserError(
            f"The fusion {fusion} encodes the concepts' trigger words: connect the base's CLIP to the input clip."
        )
    texts.check_texts(clip, "")


def _check_own_words(model: ModelPatcher, clip: CLIP | None, fusion: Fusion) -> None:
    if fusion.weigh is None:
        raise UserError(
            f"The fusion {fusion.name} changes concepts as a whole, so they cannot act on their own words: set fusion "
            f"to sum, or acts_on to {EVERYTHING}."
        )
    if clip is None:
        raise UserError(
            f"To act on {OWN_WORDS}, concepts must find them in prompts: connect the base's CLIP to the input clip."
        )
    texts.check_texts(clip, "")
    confined.check_not_confined(model)


def _confine_to_own_words(
    model: ModelPatcher, clip: CLIP, parts: list[SelectedConcept], concepts: list[Concept]
) -> tuple[ModelPatcher, CLIP, list[str]]:
    """MODEL with confined concepts, the CLIP to encode its prompts with, and what the user should know."""
    confinement = confine_to_own_words(parts)
    identity = confined.identify(confinement, concepts)
    advice = "encode all prompts with the output clip of the Compose Concepts node that the model comes from"
    words = OwnWords(identity, [part.subject for part in parts], torch.tensor([part.strength for part in parts]))
    patched = confined.confine_model(model, confinement, concepts, identity, advice)
    return patched, noting(clip, words), confinement.notes


def _fuse(
    fusion: Fusion, bank: Bank, selection: list[tuple[str, float]], model: ModelPatcher, clip: CLIP | None
) -> Fused:
    settings = FusionSettings()
    resolution = max(bank.concept(name).settings.get("resolution", SD15.native_size) for name, _ in selection)
    source = HostSource(model, clip, settings, resolution) if fusion.reads_base else None
    with host_model.outside_inference_mode():
        return fuse(fusion, select(bank, selection), settings, source)


def _megabytes(adapters: dict[str, Adapter]) -> float:
    return sum(factor.nbytes for adapter in adapters.values() for factor in (adapter.up, adapter.down)) / 2**20


def _report(bank: Bank, selection: list[tuple[str, float]], stacks: dict[str, ConcatenatedFactors]) -> str:
    concepts = [bank.concept(name) for name, _ in selection]
    bases = [(stacked.adapter.B, stacked.owner) for stacked in stacks.values()]
    pairs = largest_overlaps([concept.name for concept in concepts], bases)
    full = [(concept, full_layers(bank, concept)) for concept in concepts]
    lines = [f"{concept.name}: {describe_full_layers(layers, concept.rank)}" for concept, layers in full if layers]
    loud = [f"{a} and {b} overlap by {value:.1e}." for (a, b), value in pairs.items() if value > OVERLAP_LIMIT]
    largest = f"Largest overlap between two concepts: {max(pairs.values(), default=0.0):.1e}."
    return "\n".join([*lines, *(loud or [largest])])
