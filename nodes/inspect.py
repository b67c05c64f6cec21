"""Inspect Bank."""

from comfy_api.latest import io

from ..seqlora_core.bank.inspection import inspect
from ..seqlora_core.plots import overlap_map
from . import host
from .bank import BankType, describe_concepts
from .pictures import to_image


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
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Tables of concepts, of the pairs that overlap most and of the room; damaged files.",
                ),
                io.Image.Output(
                    "overlaps", display_name="overlaps", tooltip="A square a pair: white is orthogonal, black the same."
                ),
            ],
        )

    @classmethod
    def execute(cls, bank) -> io.NodeOutput:
        result = inspect(bank)
        report = "\n".join([*describe_concepts(bank), *result.tables(), *result.problems])
        picture = overlap_map([concept.name for concept in bank.concepts], result.pairs)
        return io.NodeOutput(report, to_image(picture), ui=host.node_text(cls, report))
