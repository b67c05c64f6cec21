"""Basis Bank Loader."""

from collections.abc import Sequence

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..seqlora_core.bank import Bank, Concept
from ..seqlora_core.bank.inspection import least_room, missing_files
from .host import CLIP, folders, interface
from .host.text_encoder import clip_fingerprint
from .host.words import knowing_words

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
                ),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP of the bank's base model, for the output clip."),
            ],
            outputs=[
                BankType.Output("bank", display_name="bank", tooltip="For Compose Concepts and SeqLoRA Train Concept."),
                io.String.Output(
                    "contents",
                    display_name="contents",
                    tooltip="The bank's concepts with their trigger words, and the free directions.",
                ),
                io.Clip.Output(
                    "clip_out",
                    display_name="clip",
                    tooltip="The connected CLIP that knows the words of all concepts, for prompts.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, bank_name: str | None) -> bool:
        """Accept every name until the node runs, where an error is a sentence and fails the whole run."""
        return True

    @classmethod
    def fingerprint_inputs(cls, bank_name: str | None, **linked) -> str:
        return folders.bank_cache_key(bank_name)

    @classmethod
    def execute(cls, bank_name: str, clip: CLIP | None = None) -> io.NodeOutput:
        bank = Bank.open(folders.bank_folder(bank_name))
        knowing = clip_for(bank, bank.concepts, clip, "Basis Bank Loader")
        room = f"At least {least_room(bank)} directions are free in each layer that the concepts use."
        report = "\n".join([*describe_concepts(bank), room, *missing_files(bank)])
        return io.NodeOutput(bank, report, knowing, ui=interface.node_text(cls, report))


def clip_for(bank: Bank, concepts: Sequence[Concept], clip: CLIP | None, node: str) -> CLIP | ExecutionBlocker:
    """The output clip of a node: the connected CLIP that knows these concepts' words.

    Raises:
        UserError: the words were learned with another CLIP, or one cannot be loaded.
    """
    if clip is None:
        return interface.not_given("CLIP", f"connect the base model's CLIP to the input clip of {node}")
    words = bank.words(concepts)
    if words:
        bank.check_text_encoder(clip_fingerprint(clip))
    return knowing_words(clip, words)


def describe_concepts(bank: Bank) -> list[str]:
    """The concepts in training order, one line per concept."""
    return [f"{c.name}: '{c.subject}', rank {c.rank}" for c in bank.concepts]
