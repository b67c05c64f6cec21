"""Load Image Folder."""

from math import gcd

from comfy_api.latest import io

from ..seqlora_core.data.listing import counted
from ..seqlora_core.data.reference_folder import read_folder
from .host import folders, interface
from .image_tensors import LARGEST_RESOLUTION, to_image


class LoadImageFolder(io.ComfyNode):
    """Reads all images of a folder, each with its own proportions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRALoadImageFolder",
            display_name="Load Image Folder (SeqLoRA)",
            search_aliases=["load images", "load folder", "image dataset"],
            description="Reads a folder of training images without cropping them to one size.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders.image_folders(),
                    tooltip="A folder of images inside ComfyUI's input folder.",
                )
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    is_output_list=True,
                    tooltip="A list of uncropped images; those larger than training can use are scaled down.",
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="The images' captions, one line per image; empty if any is missing.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool:
        """Accept every folder until the node runs.

        Where a node is refused before, the host leaves out its branch of the graph and runs the others as if all were
        well; an error while running fails the run.
        """
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> str:
        return folders.folder_cache_key(folder)

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        # The host keeps outputs in memory, four bytes per value: full-size camera images would take gigabytes.
        references = read_folder(folders.image_folder(folder), "", LARGEST_RESOLUTION)
        found = sum(bool(reference.caption) for reference in references)
        text = [f"{counted(len(references), 'image')}, {counted(found, 'caption')}", *references.notes]
        if 0 < found < len(references):
            text.append("The output captions is empty, since it needs one for every image.")
        common = gcd(*(reference.repeats for reference in references))
        images, captions = [], []
        for reference in references:  # an image with repeats is in the list that many times; its memory is shared
            images += [to_image(reference.image)] * (reference.repeats // common)
            captions += [" ".join(reference.caption.split())] * (reference.repeats // common)
        lines = "\n".join(captions) if all(captions) else ""
        return io.NodeOutput(images, lines, ui=interface.node_text(cls, "\n".join(text)))
