"""The host's nodes: their schemas, what is shown on them, progress and Cancel."""

import dataclasses
import inspect

import comfy.model_management as model_management
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io, ui
from server import PromptServer
from torch import Tensor

from ...seqlora_core.monitor import Monitor, StepReport


def schema(search_aliases: list[str], **fields) -> io.Schema:
    """A node's schema; hosts that do not know search aliases yet refuse them, so they are left out there."""
    if "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}:
        fields["search_aliases"] = search_aliases
    return io.Schema(category="SeqLoRA", hidden=[io.Hidden.unique_id, io.Hidden.prompt], **fields)


def node_text(node: type[io.ComfyNode], text: str) -> ui.PreviewText:
    """What a running node has to say: for the API, and on the node, where the front end shows progress texts alone."""
    NodeMonitor(node.hidden.unique_id).message(text)
    return ui.PreviewText(text)


def advanced(kind: type[io.Input], name: str, **fields) -> io.Input:
    """An input of the advanced section; hosts without one show it among the others, where they refuse the word."""
    if "advanced" in inspect.signature(kind).parameters:
        fields["advanced"] = True
    return kind(name, **fields)


class NodeMonitor(Monitor):
    """Progress bar, preview pictures and text on the node; Cancel ends the training at the next step."""

    def __init__(self, node_id: str | None, model=None) -> None:
        self.node_id = node_id
        self._model = model
        self._bar = None
        self._previewer = None

    def message(self, text: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None and self.node_id is not None:
            server.send_progress_text(text, self.node_id)

    def cancelled(self) -> bool:
        model_management.throw_exception_if_processing_interrupted()  # the host wants its own exception for Cancel
        return False

    def stepped(self, report: StepReport) -> None:
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(report.steps, self.node_id)
        self._bar.update_absolute(report.step, report.steps)
        minutes, seconds = divmod(round(report.seconds_left), 60)
        self.message(f"step {report.step} of {report.steps}, loss {report.loss:.4f}, {minutes}:{seconds:02} left")

    @torch.inference_mode()
    def previewed(self, latents: Tensor) -> None:
        if self._previewer is None:
            self._previewer = _latent_previewer(self._model)
        picture = self._previewer.decode_latent_to_preview_image("JPEG", latents)
        self._bar.update_absolute(self._bar.current, preview=picture)


def _latent_previewer(model) -> latent_preview.LatentPreviewer:
    """The host's own, as the user set it; where that is "none" (the default), its cheapest: the node asked for one."""
    latents = model.model.latent_format
    chosen = latent_preview.get_previewer(model.load_device, latents)
    return chosen or latent_preview.Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
