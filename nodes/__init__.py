"""The nodes, one file a family; `host` is the only module that knows ComfyUI's insides."""

from comfy_api.latest import ComfyExtension, io

from .bank import BasisBankLoader
from .compose import ComposeConcepts
from .concepts import ExportConcept, RemoveConcept, RenameConcept
from .host import register_model_folder
from .images import LoadImageFolder
from .importing import ImportLora
from .inspect import InspectBank
from .train import TrainConcept

register_model_folder()


class SeqLoRAExtension(ComfyExtension):
    """What the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            TrainConcept,
            BasisBankLoader,
            ComposeConcepts,
            LoadImageFolder,
            InspectBank,
            ImportLora,
            ExportConcept,
            RemoveConcept,
            RenameConcept,
        ]
