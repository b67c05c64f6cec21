"""Export, remove and rename concepts."""

from comfy_api.latest import io

from . import host
from .bank import BankType

_NAME_TIP = "The concept's name in the bank."


class _ConceptNode(io.ComfyNode):
    """What the three have in common: a bank and a concept in it, run for its effect."""

    @classmethod
    def schema(
        cls, node_id: str, title: str, description: str, aliases: list[str], extra: list, outputs: list
    ) -> io.Schema:
        return host.schema(
            node_id=node_id,
            display_name=title,
            search_aliases=aliases,
            description=description,
            is_output_node=True,
            inputs=[
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.String.Input("concept_name", default="", tooltip=_NAME_TIP),
                *extra,
            ],
            outputs=outputs,
        )


class ExportConcept(_ConceptNode):
    """Copies a concept into models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRAExportConcept",
            "Export Concept",
            "Writes one concept as a stock LoRA file into models/loras.",
            ["save lora", "save concept"],
            [io.String.Input("file_name", default="", tooltip="Without ending; empty takes the concept's name.")],
            [io.String.Output("lora_name", display_name="lora name", tooltip="As stock LoRA loaders list it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None, file_name: str | None, **linked) -> str:
        """Changes with the written file, so that one that was deleted is written again."""
        return host.written_lora_cache_key(concept_name if file_name == "" else file_name)

    @classmethod
    def execute(cls, bank, concept_name: str, file_name: str) -> io.NodeOutput:
        path = bank.refresh().export(concept_name, host.lora_path(file_name or bank.concept(concept_name).name))
        return io.NodeOutput(path.name, ui=host.node_text(cls, f"Wrote {path}"))


class RemoveConcept(_ConceptNode):
    """Takes a concept out of a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRARemoveConcept",
            "Remove Concept",
            "Deletes a concept from a bank; its directions are free again for later ones.",
            ["delete concept"],
            [],
            [BankType.Output("bank_out", display_name="bank", tooltip="The bank without it.")],
        )

    @classmethod
    def execute(cls, bank, concept_name: str) -> io.NodeOutput:
        removed = bank.remove(concept_name)
        return io.NodeOutput(bank, ui=host.node_text(cls, f"Removed {removed.name}"))


class RenameConcept(_ConceptNode):
    """Gives a concept another name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRARenameConcept",
            "Rename Concept",
            "Gives a concept another name; its token stays the one it was trained with.",
            ["concept name"],
            [io.String.Input("new_name", default="", tooltip="Its new name in the bank.")],
            [BankType.Output("bank_out", display_name="bank", tooltip="The bank with the new name.")],
        )

    @classmethod
    def execute(cls, bank, concept_name: str, new_name: str) -> io.NodeOutput:
        renamed = bank.rename(concept_name, new_name)
        return io.NodeOutput(bank, ui=host.node_text(cls, f"{concept_name} is now {renamed.name}"))
