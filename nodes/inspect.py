"""Inspect Bank."""

from comfy_api.latest import io, ui

from ..seqlora_core.bank.inspection import inspect
from ..seqlora_core.plots import overlap_map
from . import host
from .bank import BankType, describe


class InspectBank(io.ComfyNode):
    """Measures a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRAInspectBank",
            display_name="Inspect Bank",
            search_aliases=["overlap", "orthogonality", "bank report"],
            description="Shows how far every pair of concepts overlaps, the room left, and damaged files.",
            is_output_node=True,
            inputs=[BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept.")],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="Concepts, room and problems in words."),
                io.Image.Output(
                    "overlaps", display_name="overlaps", tooltip="A square a pair: white is orthogonal, black the same."
                ),
            ],
        )

    @classmethod
    def execute(cls, bank) -> io.NodeOutput:
        result = inspect(bank)
        free = min(layer["free"] for layer in result.layers.values())
        report = f"{describe(bank, free, result.problems)}\nLargest overlap of two concepts: {result.max_overlap:.1e}."
        picture = overlap_map([concept.name for concept in bank.concepts], result.pairs)
        return io.NodeOutput(report, host.to_image(picture), ui=ui.PreviewText(report))
