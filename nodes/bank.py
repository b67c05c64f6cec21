"""Basis Bank Loader."""

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.inspection import least_room, missing_files
from .host import folders, interface

BankType = io.Custom("SEQLORA_BANK")


class BasisBankLoader(io.ComfyNode):
    """Opens a bank in the model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRABankLoader",
            display_name="Basis Bank Loader",
            search_aliases=["load bank", "lora bank", "concept bank"],
            description="Opens a bank of concepts in models/seqlora and lists its contents.",
            inputs=[
                io.Combo.Input(
                    "bank_name",
                    options=folders.bank_names(),
                    tooltip="A bank in models/seqlora; SeqLoRA Train Concept creates them.",
                )
            ],
            outputs=[
                BankType.Output("bank", display_name="bank", tooltip="For Compose Concepts and SeqLoRA Train Concept."),
                io.String.Output(
                    "contents",
                    display_name="contents",
                    tooltip="The bank's concepts with their trigger words, and the free directions.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, bank_name: str | None) -> bool:
        """Accept every name until the node runs, where an error is a sentence and fails the whole run."""
        return True

    @classmethod
    def fingerprint_inputs(cls, bank_name: str | None) -> str:
        return folders.bank_cache_key(bank_name)

    @classmethod
    def execute(cls, bank_name: str) -> io.NodeOutput:
        bank = Bank.open(folders.bank_folder(bank_name))
        room = f"At least {least_room(bank)} directions are free in each layer that the concepts use."
        report = "\n".join([*describe_concepts(bank), room, *missing_files(bank)])
        return io.NodeOutput(bank, report, ui=interface.node_text(cls, report))


def describe_concepts(bank: Bank) -> list[str]:
    """The concepts in training order, one line per concept."""
    return [f"{c.name}: '{c.subject}', rank {c.rank}" for c in bank.concepts]
