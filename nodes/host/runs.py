"""The training runs of this session as the page shows them: losses, previews, stage and time left, by node.

They outlive the page, so that a reloaded page and a second tab show them again.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from io import BytesIO

from comfy_api.latest import io
from PIL import Image
from server import PromptServer

_MAX_RUNS, _MAX_POINTS, _MAX_PREVIEWS = 16, 4000, 24
_PREVIEW = 160  # px
_runs: OrderedDict[tuple[str, str], "Run"] = OrderedDict()
_lock = threading.Lock()  # runs change in the worker's thread, and are read in the server's


@dataclass
class Run:
    """The latest training run of a node.

    Attributes:
        workflow: id of the graph in the page; empty for a prompt that came without one, which no page shows.
        node: execution id, such as "3:7" for node 7 in the subgraph 3.
        state: "running", "done", or "stopped" by Cancel or an error.
        points: (step, loss) from step 1 on; of a long run every second, fourth ... one.
        held_out_points: (step, loss) of the held-out images.
        previews: step -> JPEG file.
    """

    workflow: str
    node: str
    concept: str
    state: str = "running"
    status: str = ""
    steps: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)
    held_out_points: list[tuple[int, float]] = field(default_factory=list)
    previews: dict[int, bytes] = field(default_factory=dict)
    _stride: int = 1

    def describe(self) -> dict:
        """JSON-ready values of the whole run."""
        with _lock:
            lists = {"points": self.points, "held_out": self.held_out_points, "previews": self.previews}
            return {**self._head(), **{name: list(values) for name, values in lists.items()}}

    def _head(self) -> dict:
        return {name: getattr(self, name) for name in ("workflow", "node", "concept", "state", "status", "steps")}

    def report(self, status: str, state: str = "running") -> None:
        """Note what the run does now."""
        self.status, self.state = status, state
        self._send({})

    def stepped(self, step: int, steps: int, loss: float, status: str) -> None:
        """Note a step."""
        with _lock:
            self.steps, self.status = steps, status
            if step % self._stride == 0:
                self.points.append((step, loss))
            if len(self.points) > _MAX_POINTS:
                self._stride *= 2
                self.points = [point for point in self.points if point[0] % self._stride == 0]
        self._send({"point": (step, loss)})

    def held_out(self, step: int, loss: float) -> None:
        """Note the loss of the held-out images."""
        with _lock:
            self.held_out_points.append((step, loss))
        self._send({"held_out_point": (step, loss)})

    def previewed(self, image: Image.Image) -> None:
        """Keep a preview of the step that was noted last; of many, every second one goes."""
        small, buffer = image.convert("RGB"), BytesIO()
        small.thumbnail((_PREVIEW, _PREVIEW))
        small.save(buffer, "JPEG", quality=85)
        step = self.points[-1][0] if self.points else 0
        with _lock:
            self.previews[step] = buffer.getvalue()
            if len(self.previews) > _MAX_PREVIEWS:
                self.previews = dict(list(self.previews.items())[1::2])
        self._send({"previews": list(self.previews)})

    def _send(self, news: dict) -> None:
        """Tell the page that queued the run, and no other client."""
        server = getattr(PromptServer, "instance", None)
        if self.workflow and server is not None and server.client_id is not None:
            server.send_sync("seqlora.progress", {**self._head(), **news}, server.client_id)


def start(node: type[io.ComfyNode], concept: str) -> Run:
    """The run of a node that has just begun, in place of its last one."""
    workflow = (node.hidden.extra_pnginfo or {}).get("workflow") or {}
    run = Run(str(workflow.get("id", "")), str(node.hidden.unique_id), concept)
    with _lock:
        _runs.pop((run.workflow, run.node), None)
        _runs[run.workflow, run.node] = run
        while len(_runs) > _MAX_RUNS:
            _runs.popitem(last=False)
    return run


def find(workflow: str, node: str) -> Run | None:
    """The latest run of a node of a graph in the page."""
    return _runs.get((workflow, node)) if workflow else None
