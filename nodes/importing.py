"""Import LoRA as Concept."""

from comfy_api.latest import io

from ..seqlora_core.bank import Bank
from ..seqlora_core.bank.importing import describe_import, import_lora
from ..seqlora_core.bank.spec import ConceptSpec
from . import host
from .bank import BankType
from .graph import model_file


class ImportLora(io.ComfyNode):
    """Takes a LoRA of another tool into a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRAImportLora",
            display_name="Import LoRA as Concept",
            search_aliases=["load lora into bank", "convert lora", "project lora"],
            description="Adds the attention layers of any SD1.5 LoRA file to a bank, and measures how they overlap.",
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                BankType.Output("bank_out", display_name="bank", tooltip="The bank with the concept."),
                io.String.Output(
                    "concept", display_name="concept", tooltip="The concept's name, for Compose Concepts."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was taken and left out, and the overlap with every concept.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, bank_name: str, **inputs) -> str:
        """Changes with the bank and the file; the node that a connected bank comes from is asked by the host."""
        bank = "" if "bank" in inputs else host.bank_cache_key(bank_name)
        return f"{bank}/{host.lora_cache_key(lora_name)}"

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
        bank=None,
        model=None,
    ) -> io.NodeOutput:
        spec = ConceptSpec(concept_name, token, class_word)
        bank = _open(cls, bank.folder if bank is not None else host.bank_folder(bank_name), model)
        monitor, replace = host.NodeMonitor(cls.hidden.unique_id), on_existing == "replace"
        concept = import_lora(bank, host.lora_file(lora_name), spec, project, replace, monitor)
        report = describe_import(bank, concept)
        return io.NodeOutput(bank, concept.name, report, ui=host.node_text(cls, report))


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input("lora_name", options=host.lora_files(), tooltip="A .safetensors LoRA in models/loras."),
        io.String.Input("bank_name", default="my bank", tooltip="A bank in models/seqlora; with a model, made if new."),
        io.String.Input("concept_name", default="", tooltip="The concept's name in the bank."),
        io.String.Input("token", default="", tooltip="The word that the LoRA was trained with."),
        io.String.Input("class_word", default="", tooltip="What the subject is, such as dog."),
        io.Boolean.Input(
            "project",
            default=False,
            tooltip="Keep only what is orthogonal to the bank's concepts; the report says how much that is.",
        ),
        io.Combo.Input(
            "on_existing",
            options=["error", "replace"],
            default="error",
            tooltip="What happens if the name exists. The same import again changes nothing.",
        ),
        BankType.Input("bank", optional=True, tooltip="A bank to import into, instead of the one named in bank_name."),
        io.Model.Input("model", optional=True, tooltip="The base model of a bank that is not there yet; else a check."),
    ]


def _open(node: type[ImportLora], folder, model) -> Bank:
    if model is None:
        return Bank.open(folder)
    host.check_model(model)
    return Bank.open_or_create(folder, *host.identify(model, model_file(node)))
