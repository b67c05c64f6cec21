"""Basis Bank Loader."""

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.inspection import least_room, missing_files
from ..seqlora_core.errors import UserError
from . import host

BankType = io.Custom("SEQLORA_BANK")


class BasisBankLoader(io.ComfyNode):
    """Picks a bank from the model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRABankLoader",
            display_name="Basis Bank Loader",
            search_aliases=["load bank", "lora bank", "concept bank"],
            description="Opens a bank of concepts from models/seqlora and shows what it holds.",
            inputs=[
                io.Combo.Input(
                    "bank_name", options=host.bank_names(), tooltip="A folder in models/seqlora, made by training."
                )
            ],
            outputs=[
                BankType.Output("bank", display_name="bank", tooltip="For Compose Concepts and SeqLoRA Train Concept."),
                io.String.Output(
                    "contents",
                    display_name="contents",
                    tooltip="The bank's concepts with their trigger words, and the room left.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, bank_name: str | None) -> bool | str:
        try:
            if bank_name is not None:  # another node's to give, later
                Bank.open(host.bank_folder(bank_name))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, bank_name: str | None) -> str:
        return host.bank_cache_key(bank_name)

    @classmethod
    def execute(cls, bank_name: str) -> io.NodeOutput:
        bank = Bank.open(host.bank_folder(bank_name))
        room = f"At least {least_room(bank)} directions are free in every layer."
        report = "\n".join([*describe_concepts(bank), room, *missing_files(bank)])
        return io.NodeOutput(bank, report, ui=host.node_text(cls, report))


def describe_concepts(bank: Bank) -> list[str]:
    """The concepts in training order, a line each."""
    return [f"{c.name}: '{c.subject}', rank {c.rank}" for c in bank.concepts]
