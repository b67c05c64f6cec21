"""What nodes look like and report: schemas, texts, progress, previews and Cancel."""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as model_management
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from ...seqlora_core.cli.terminal import StepBar
from ...seqlora_core.monitor import Monitor, StepReport
from . import ModelPatcher, console
from .runs import Run


def schema(search_aliases: list[str], **fields) -> io.Schema:
    """A node's schema, without the fields that older hosts refuse.

    Texts on a node are intermediate outputs: a node that the host has in its cache shows them again.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    later = {"search_aliases": search_aliases, "has_intermediate_output": not fields.get("is_output_node", False)}
    fields |= {name: value for name, value in later.items() if name in known}
    return io.Schema(
        category="SeqLoRA", hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo], **fields
    )


def node_text(node: type[io.ComfyNode], text: str, shown: str | None = None) -> ui.PreviewText:
    """Show a text on a running node, and return it for the API and for the node after the run (web/js/node_text.js).

    Args:
        shown: what a node without the page's code shows instead, where the text is too long for it.
    """
    _show(node.hidden.unique_id, text if shown is None else shown)
    return ui.PreviewText(text)


def not_given(output: str, advice: str) -> ExecutionBlocker:
    """An output without a value: only the nodes that need it fail, with this sentence."""
    return ExecutionBlocker(f"There is no {output} on this output: {advice}.")


def advanced(kind: type[io.Input], name: str, **fields) -> io.Input:
    """An input of the advanced section; hosts without such a section show it among the other inputs."""
    if "advanced" in inspect.signature(kind).parameters:
        fields["advanced"] = True
    return kind(name, **fields)


def bounding_box(name: str, tooltip: str) -> io.Input:
    """An optional socket for a box; on hosts that have no such type, only for nodes that bring it."""
    if hasattr(io, "BoundingBox"):
        return io.BoundingBox.Input(name, optional=True, tooltip=tooltip, force_input=True)
    return io.Custom("BOUNDING_BOX").Input(name, optional=True, tooltip=tooltip)


class NodeMonitor(Monitor):
    """Shows stages, steps, messages and preview images on the node; Cancel ends the training run at the next step.

    Everything but the images goes to the console, too.

    Args:
        run: the training run that the page shows.

    Attributes:
        messages: those so far; they stay on the node, below what changes.
    """

    def __init__(self, node_id: str | None, model: ModelPatcher | None = None, run: Run | None = None) -> None:
        self.node_id = node_id
        self._run = run or Run("", "", "")
        self.messages: list[str] = []
        self._model = model
        self._stage = ""
        self._bar = None
        self._console_bar = StepBar(hidden=not comfy.utils.PROGRESS_BAR_ENABLED)
        self._previewer = None
        self._held_out = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Report where a run stops that the user cancels inside the block."""
        try:
            yield
            self._run.report("", "done")
        except model_management.InterruptProcessingException:
            self._console_bar.close()
            self.message(f"Stopped {self.stopped_at}; run again to continue.")
            raise
        finally:
            self._console_bar.close()
            if self._run.state == "running":
                self._run.report("", "stopped")

    def message(self, text: str) -> None:
        self.messages.append(text)
        console.say(text)
        _show(self.node_id, text)

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._stage:
            console.say(text)
        self._stage = text
        status = f"{text}: {done} of {total}" if done else text
        self._run.report(status)
        self._show_above_messages(status)

    def cancelled(self) -> bool:
        model_management.throw_exception_if_processing_interrupted()  # the host expects its own exception
        return False

    def stepped(self, report: StepReport) -> None:
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(report.steps, self.node_id)
        self._bar.update_absolute(report.step, report.steps)
        self._console_bar.show(report)
        minutes, seconds = divmod(round(report.seconds_left), 60)
        losses = f"loss {report.loss:.4f}{self._held_out}"
        status = f"step {report.step} of {report.steps}, {losses}, {minutes}:{seconds:02} left"
        self._run.stepped(report.step, report.steps, report.loss, status)
        self._show_above_messages(status)

    def held_out(self, step: int, loss: float) -> None:
        self._held_out = f", of held-out images {loss:.4f}"
        self._console_bar.held_out(loss)
        self._run.held_out(step, loss)

    def _show_above_messages(self, status: str) -> None:
        _show(self.node_id, "\n".join([status, *self.messages]))

    @torch.inference_mode()
    def previewed(self, latents: Tensor) -> None:
        if _client() is None:
            return
        if self._previewer is None:
            self._previewer = _latent_previewer(self._model)
        image = self._previewer.decode_latent_to_preview_image("JPEG", latents)
        self._run.previewed(image[1])
        bar = self._bar or comfy.utils.ProgressBar(1, self.node_id)  # before the first step
        bar.update_absolute(bar.current, preview=image)


def _show(node_id: str | None, text: str) -> None:
    """Show a text on a node of the client that queued the job."""
    if node_id is not None and (client := _client()) is not None:
        PromptServer.instance.send_progress_text(text, node_id, client)


def _client() -> str | None:
    """The client that queued the running job.  Without one, the host would send to every open browser."""
    return getattr(getattr(PromptServer, "instance", None), "client_id", None)


def _latent_previewer(model: ModelPatcher) -> latent_preview.LatentPreviewer:
    """The previewer that the user chose in the host; where that is none (the default), the cheapest one."""
    latents = model.model.latent_format
    chosen = latent_preview.get_previewer(model.load_device, latents)
    return chosen or latent_preview.Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
