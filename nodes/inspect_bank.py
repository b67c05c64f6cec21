"""Inspect Bank."""

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.inspection import inspect
from ..seqlora_core.plots import overlap_map
from .bank import BankType, describe_concepts
from .host import interface
from .image_tensors import to_image


class InspectBank(io.ComfyNode):
    """Measures a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRAInspectBank",
            display_name="Inspect Bank",
            search_aliases=["overlap", "orthogonality", "bank report"],
            description="Reports how far every pair of concepts overlaps, how much room is left, and damaged files.",
            is_output_node=True,
            inputs=[BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept.")],
            outputs=[
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The concepts, the pairs that overlap most, the free directions, and damaged files.",
                ),
                io.Image.Output(
                    "overlaps",
                    display_name="overlaps",
                    tooltip="One square per pair of concepts: white = orthogonal, black = identical.",
                ),
            ],
        )

    @classmethod
    def execute(cls, bank: Bank) -> io.NodeOutput:
        result = inspect(bank)
        report = "\n".join([*describe_concepts(bank), *result.tables(), *result.problems])
        summary = "\n".join([result.tables()[0], *result.problems])  # the page adds the report (web/js/node_text.js)
        overlaps = overlap_map([concept.name for concept in bank.concepts], result.pairs)
        return io.NodeOutput(report, to_image(overlaps), ui=interface.node_text(cls, report, summary))
