"""Load Image Folder."""

from math import gcd

from comfy_api.latest import io

from ..seqlora_core.data.images import image_files, read_folder
from ..seqlora_core.data.listing import counted
from ..seqlora_core.errors import UserError
from . import host
from .pictures import LARGEST_RESOLUTION, to_image


class LoadImageFolder(io.ComfyNode):
    """Reads all pictures of a folder, each at its own proportions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRALoadImageFolder",
            display_name="Load Image Folder (SeqLoRA)",
            search_aliases=["load images", "load folder", "image dataset"],
            description="Reads a folder of training pictures without cropping them to one size.",
            inputs=[
                io.Combo.Input(
                    "folder", options=host.image_folders(), tooltip="A folder inside ComfyUI's input folder."
                )
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    is_output_list=True,
                    tooltip="One picture after another, uncropped; scaled down where larger than training uses.",
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="The caption files of the pictures, one line each; empty if any has none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        try:
            if folder is not None:  # another node's to give, later
                image_files(host.image_folder(folder))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> str:
        return host.folder_cache_key(folder)

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        # The host keeps the outputs in memory, four bytes a value: those of a camera's pictures would be gigabytes.
        references = read_folder(host.image_folder(folder), "", LARGEST_RESOLUTION)
        found = sum(bool(reference.caption) for reference in references)
        text = [f"{counted(len(references), 'image')}, {counted(found, 'caption')}", *references.notes]
        if 0 < found < len(references):
            text.append("The output captions is empty, since it needs one for every image.")
        common = gcd(*(reference.repeats for reference in references))
        images, captions = [], []
        for reference in references:  # an image with repeats is there that many times; its memory is shared
            images += [to_image(reference.image)] * (reference.repeats // common)
            captions += [" ".join(reference.caption.split())] * (reference.repeats // common)
        lines = "\n".join(captions) if all(captions) else ""
        return io.NodeOutput(images, lines, ui=host.node_text(cls, "\n".join(text)))
