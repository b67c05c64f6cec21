"""Import LoRA as Concept."""

from pathlib import Path

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.importing import describe_import, import_lora
from ..seqlora_core.bank.spec import ConceptSpec
from .bank import BankType
from .host import ModelPatcher, folders, interface
from .host import model as host_model
from .host.prompt import model_file


class ImportLora(io.ComfyNode):
    """Adds a LoRA file from another tool to a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRAImportLora",
            display_name="Import LoRA as Concept",
            search_aliases=["load lora into bank", "convert lora", "project lora"],
            description="Adds the attention layers of an SD1.5 LoRA file to a bank and reports how far they overlap "
            "with the bank's concepts.",
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                BankType.Output("bank_out", display_name="bank", tooltip="The bank with the imported concept."),
                io.String.Output(
                    "concept", display_name="concept", tooltip="The concept's name, for Compose Concepts."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was imported, what was left out, and the overlap with each other concept.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None) -> bool:
        """Accept every name until the node runs, where an error is a sentence and fails the whole run."""
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, bank_name: str, **inputs) -> str:
        """Changes with the file and with the bank; of a connected bank the host asks the node that provides it."""
        bank = "" if "bank" in inputs else folders.bank_cache_key(bank_name)
        return f"{bank}/{folders.lora_cache_key(lora_name)}"

    @classmethod
    def execute(
        cls,
        lora_name: str,
        bank_name: str,
        concept_name: str,
        token: str,
        class_word: str,
        project: bool,
        on_existing: str,
        bank: Bank | None = None,
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        spec, file = ConceptSpec(concept_name, token, class_word), folders.lora_file(lora_name)
        bank = _open(cls, bank.folder if bank is not None else folders.bank_folder(bank_name), model)
        monitor, replace = interface.NodeMonitor(cls.hidden.unique_id), on_existing == "replace"
        concept = import_lora(bank, file, spec, project, replace, monitor)
        report = describe_import(bank, concept)
        return io.NodeOutput(bank, concept.name, report, ui=interface.node_text(cls, report))


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input("lora_name", options=folders.lora_files(), tooltip="A .safetensors LoRA file in models/loras."),
        io.String.Input(
            "bank_name",
            default="my bank",
            tooltip="A bank in models/seqlora; created if it does not exist and a model is connected.",
        ),
        io.String.Input("concept_name", default="", tooltip="The concept's name in the bank."),
        io.String.Input("token", default="", tooltip="The trigger word that the LoRA was trained with."),
        io.String.Input("class_word", default="", tooltip="What the subject is, such as dog."),
        io.Boolean.Input(
            "project",
            default=False,
            tooltip="Import only the part that is orthogonal to the bank's concepts; the report says how much that is.",
        ),
        io.Combo.Input(
            "on_existing",
            options=["error", "replace"],
            default="error",
            tooltip="What to do if the bank has another concept of this name. Repeating the same import does nothing.",
        ),
        BankType.Input("bank", optional=True, tooltip="The bank to import into, used instead of bank_name."),
        io.Model.Input(
            "model", optional=True, tooltip="The base model. Needed to create a bank; otherwise only compared with it."
        ),
    ]


def _open(node: type[ImportLora], folder: Path, model: ModelPatcher | None) -> Bank:
    if model is None:
        return Bank.open(folder)
    host_model.check_model(model)
    return Bank.open_or_create(folder, *host_model.identify(model, model_file(node)))
