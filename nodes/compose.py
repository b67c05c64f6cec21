"""Compose Concepts."""

import time

import torch
from comfy_api.latest import io

from ..seqlora_core.bank.inspection import OVERLAP_LIMIT, largest_overlaps
from ..seqlora_core.composition import Stack, parse_selections, stack, trigger_words
from ..seqlora_core.fusion import FUSIONS, WITHOUT_BASE
from ..seqlora_core.plan import describe_full_layers, full_layers
from . import host
from .bank import BankType
from .graph import model_file


class ComposeConcepts(io.ComfyNode):
    """Sums concepts into one patch on MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRAComposeConcepts",
            display_name="Compose Concepts",
            search_aliases=["lora stack", "multi lora", "merge loras", "combine concepts"],
            description="Adds any concepts of a bank to a model, each with its strength, as one LoRA patch.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the bank belongs to; other LoRAs may be on it."),
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip="name or name:strength, with commas or line ends between: dog:1, cat:0.8. Empty takes all.",
                ),
                host.advanced(
                    io.Combo.Input,
                    "fusion",
                    options=list(WITHOUT_BASE),
                    default="sum",
                    optional=True,
                    tooltip="sum is what SeqLoRA concepts are made for. Other fusions run the base model: the command "
                    "line's compose makes a LoRA file with them.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The model with the concepts."),
                io.String.Output("trigger_words", display_name="trigger words", tooltip="Write these into the prompt."),
                io.String.Output("report", display_name="report", tooltip="How far the chosen concepts overlap."),
            ],
        )

    @classmethod
    def execute(cls, model, bank, concepts: str, fusion: str = "sum") -> io.NodeOutput:
        bank.refresh()
        host.check_model(model)
        bank.check_base(host.identify(model, model_file(cls))[0])
        started = time.monotonic()
        selection = parse_selections(concepts) or [(concept.name, 1.0) for concept in bank.concepts]
        weights = FUSIONS[fusion].weigh([strength for _, strength in selection])
        stacks = stack(bank, [(name, weight) for (name, _), weight in zip(selection, weights, strict=True)])
        patched = host.apply_adapters(model, {layer: stacked.adapter for layer, stacked in stacks.items()})
        cost = f"Put together in {time.monotonic() - started:.1f} s; the patch takes {_megabytes(stacks):.1f} MB."
        words, report = trigger_words(bank, selection), f"{_report(bank, selection, stacks)}\n{cost}"
        return io.NodeOutput(patched, words, report, ui=host.told(cls, f"{words}\n{report}"))


def _megabytes(stacks: dict[str, Stack]) -> float:
    return sum(factor.nbytes for stacked in stacks.values() for factor in stacked.adapter) / 2**20


def _report(bank, selection: list[tuple[str, float]], stacks: dict[str, Stack]) -> str:
    concepts = [bank.concept(name) for name, _ in selection]
    bases = [(stacked.adapter.B, stacked.owner) for stacked in stacks.values()]
    pairs = largest_overlaps([concept.name for concept in concepts], bases, torch.float32)
    full = [(concept, full_layers(bank, concept)) for concept in concepts]
    lines = [f"{concept.name}: {describe_full_layers(layers, concept.rank)}" for concept, layers in full if layers]
    loud = [f"{a} and {b} overlap by {value:.1e}." for (a, b), value in pairs.items() if value > OVERLAP_LIMIT]
    return "\n".join([*lines, *(loud or [f"Largest overlap of two concepts: {max(pairs.values(), default=0.0):.1e}."])])
