"""The nodes, one file per family; `host` is the only package that knows ComfyUI's insides."""

from comfy_api.latest import ComfyExtension, io

from .bank import BasisBankLoader
from .compose import ComposeConcepts
from .compose_regions import ComposeRegions
from .concepts import ExportConcept, RemoveConcept, RenameConcept
from .host.console import shorten_user_errors
from .host.folders import register_model_folder
from .host.routes import register_routes
from .image_folder import LoadImageFolder
from .importing import ImportLora
from .inspect_bank import InspectBank
from .region import RegionNode
from .settings import TrainingSettings
from .train import TrainConcept

register_model_folder()
shorten_user_errors()
register_routes()


class SeqLoRAExtension(ComfyExtension):
    """The extension that the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            TrainConcept,
            TrainingSettings,
            BasisBankLoader,
            ComposeConcepts,
            RegionNode,
            ComposeRegions,
            LoadImageFolder,
            InspectBank,
            ImportLora,
            ExportConcept,
            RemoveConcept,
            RenameConcept,
        ]
