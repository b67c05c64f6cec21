"""Export, remove and rename concepts."""

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from .bank import BankType
from .host import folders, interface
from .host.exporting import export_concept

# What these nodes have done since the host started.  A graph that is queued again finds its work done; a name that was
# never in the bank stays an error.
_removed: set[tuple[str, str]] = set()  # (bank's id, concept's name)
_renamed: set[tuple[str, str, str]] = set()  # (bank's id, old name, new name)


class _ConceptNode(io.ComfyNode):
    """An output node with a bank and the name of one of its concepts as its first inputs."""

    @classmethod
    def schema(
        cls, node_id: str, title: str, description: str, aliases: list[str], extra: list, outputs: list
    ) -> io.Schema:
        return interface.schema(
            node_id=node_id,
            display_name=title,
            search_aliases=aliases,
            description=description,
            is_output_node=True,
            inputs=[
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.String.Input("concept_name", default="", tooltip="The concept's name in the bank."),
                *extra,
            ],
            outputs=outputs,
        )


class ExportConcept(_ConceptNode):
    """Copies a concept's LoRA file into models/loras, and its learned word into models/embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRAExportConcept",
            "Export Concept",
            "Saves one concept to models/loras as a LoRA file that every SD1.5 LoRA loader reads, and its learned "
            "word to models/embeddings.",
            ["save lora", "save concept"],
            [
                io.String.Input(
                    "file_name",
                    default="",
                    tooltip="Name of the new file without its extension; if empty, the concept's name.",
                )
            ],
            [
                io.String.Output(
                    "lora_name", display_name="lora name", tooltip="The file's name as LoRA loaders list it."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None, file_name: str | None, **linked) -> str:
        """Changes with the written file, so that a deleted file is written again."""
        return folders.written_lora_cache_key(concept_name if file_name == "" else file_name)

    @classmethod
    def execute(cls, bank: Bank, concept_name: str, file_name: str) -> io.NodeOutput:
        path, lines = export_concept(bank.refresh(), concept_name, file_name)
        return io.NodeOutput(path.name, ui=interface.node_text(cls, "\n".join(lines)))


class RemoveConcept(_ConceptNode):
    """Deletes a concept from a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRARemoveConcept",
            "Remove Concept",
            "Deletes a concept from a bank, which frees its directions for later concepts.",
            ["delete concept"],
            [],
            [BankType.Output("bank_out", display_name="bank", tooltip="The bank without the concept.")],
        )

    @classmethod
    def execute(cls, bank: Bank, concept_name: str) -> io.NodeOutput:
        done = (bank.manifest.id, _key(concept_name))
        if done in _removed and bank.refresh().manifest.find(concept_name) is None:
            text = f"{concept_name} was removed before; there is nothing left to do."
        else:
            text = f"Removed {bank.remove(concept_name).name}"
            _removed.add(done)
        return io.NodeOutput(bank, ui=interface.node_text(cls, text))


class RenameConcept(_ConceptNode):
    """Gives a concept another name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "SeqLoRARenameConcept",
            "Rename Concept",
            "Gives a concept another name. Its token in prompts stays the same.",
            ["concept name"],
            [io.String.Input("new_name", default="", tooltip="The concept's new name in the bank.")],
            [BankType.Output("bank_out", display_name="bank", tooltip="The bank with the renamed concept.")],
        )

    @classmethod
    def execute(cls, bank: Bank, concept_name: str, new_name: str) -> io.NodeOutput:
        done = (bank.manifest.id, _key(concept_name), _key(new_name))
        manifest = bank.refresh().manifest
        if done in _renamed and manifest.find(concept_name) is None and manifest.find(new_name):
            text = f"{concept_name} was renamed to {new_name} before; there is nothing left to do."
        else:
            text = f"{concept_name} is now {bank.rename(concept_name, new_name).name}"
            _renamed.add(done)
        return io.NodeOutput(bank, ui=interface.node_text(cls, text))


def _key(name: str) -> str:
    return name.strip().casefold()
