"""Load Image Folder."""

from math import gcd

from comfy_api.latest import io

from ..seqlora_core.data.listing import counted
from ..seqlora_core.data.reference_folder import NO_ALPHA, read_folder
from .host import folders, interface
from .image_tensors import LARGEST_RESOLUTION, to_image, to_mask


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
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One mask per image, 1 where it is transparent. For SeqLoRA Train Concept, put Invert Mask "
                    "in between.",
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
        references = read_folder(folders.image_folder(folder), "", LARGEST_RESOLUTION, alpha=True)
        found = sum(bool(reference.caption) for reference in references)
        text = [f"{counted(len(references), 'image')}, {counted(found, 'caption')}"]
        text += [note for note in references.notes if note != NO_ALPHA]
        if 0 < found < len(references):
            text.append("The output captions is empty, since it needs one for every image.")
        alphas = [reference.alpha for reference in references if reference.alpha is not None]
        if transparent := sum(alpha.getextrema()[0] < 255 for alpha in alphas):
            text.append(
                f"{counted(transparent, 'image')} with transparent areas, which become white. To train on the rest "
                "only, connect the output masks to Invert Mask, and that to the input masks of SeqLoRA Train Concept."
            )
        common = gcd(*(reference.repeats for reference in references))
        images, captions, masks = [], [], []
        for reference in references:  # an image with repeats is in the list that many times; its memory is shared
            images += [to_image(reference.image)] * (reference.repeats // common)
            captions += [" ".join(reference.caption.split())] * (reference.repeats // common)
            masks += [to_mask(reference.alpha)] * (reference.repeats // common)
        lines = "\n".join(captions) if all(captions) else ""
        return io.NodeOutput(images, lines, masks, ui=interface.node_text(cls, "\n".join(text)))
