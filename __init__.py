"""SeqLoRA's ComfyUI node pack.  The host calls `comfy_entrypoint`; nothing is imported before."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack as a `ComfyExtension`."""
    from .nodes import SeqLoRAExtension

    return SeqLoRAExtension()
