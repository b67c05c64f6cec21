"""Starting a real ComfyUI and talking to its HTTP and websocket API."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import websocket

START_SECONDS, JOB_SECONDS = 180, 300
PROGRESS_TEXT, PREVIEW_WITH_METADATA = 3, 4  # the host's numbers for such frames


def host_checkout() -> Path:
    return Path(os.environ.get("COMFYUI_DIR", Path.home() / "ComfyUI"))


def host_python() -> Path:
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return Path(os.environ.get("COMFYUI_PYTHON", host_checkout() / "venv" / inside))


class NodeError(Exception):
    """The host refused or failed a prompt; the text is what it said."""


@dataclass
class Host:
    """A running server."""

    folder: Path
    port: int
    process: subprocess.Popen = field(repr=False)

    def fetch(self, path: str, body: dict | bool | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise NodeError(error.read().decode()) from error

    def request(self, path: str, body: dict | bool | None = None) -> dict:
        return json.loads(self.fetch(path, body) or b"{}")

    def queue(self, prompt: dict, client: str | None = "tests") -> str:
        body = {"prompt": prompt} if client is None else {"prompt": prompt, "client_id": client}
        return self.request("/prompt", body)["prompt_id"]

    def queue_and_wait_for_progress(self, prompt: dict, node: str, value: int) -> str:
        """Queue a prompt and follow the websocket until `node` reports that much progress; the job's id."""
        with self._listening() as (ws, client):
            job = self.queue(prompt, client)
            while True:
                frame = ws.recv()
                message = json.loads(frame) if isinstance(frame, str) else {}
                data = message.get("data", {})
                if message.get("type") == "execution_error":
                    raise NodeError(data["exception_message"])
                if message.get("type") == "progress" and data.get("node") == node and data["value"] >= value:
                    return job

    def texts(self, prompt: dict) -> list[str]:
        """Run a prompt; the progress texts that the websocket brought meanwhile."""
        with self._listening() as (ws, client):
            frames = self._frames(ws, self.queue(prompt, client))
            return [body[length:].decode() for kind, length, body in frames if kind == PROGRESS_TEXT]

    def previews(self, prompt: dict) -> list[tuple[str, bytes]]:
        """Run a prompt; the preview pictures that the websocket brought meanwhile, as (node id, encoded picture)."""
        with self._listening() as (ws, client):
            ws.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            frames = self._frames(ws, self.queue(prompt, client))
            return [
                (json.loads(body[:length])["node_id"], body[length:])
                for kind, length, body in frames
                if kind == PREVIEW_WITH_METADATA
            ]

    def kinds_of_frames_elsewhere(self, prompt: dict, client: str | None) -> set[int]:
        """Run a prompt for a client; the kinds of binary frames that reach another one."""
        with self._listening() as (ws, _):
            ws.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            self.wait(self.queue(prompt, client))
            ws.settimeout(2)
            frames = []
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                while True:
                    frames.append(ws.recv())
            return {struct.unpack(">I", frame[:4])[0] for frame in frames if isinstance(frame, bytes)}

    @staticmethod
    def _frames(ws: websocket.WebSocket, job: str) -> Iterator[tuple[int, int, bytes]]:
        """Binary frames until a job is done: kind, length of the head, head and content; NodeError if it fails."""
        while True:
            frame = ws.recv()
            if isinstance(frame, bytes):
                yield *struct.unpack(">II", frame[:8]), frame[8:]
                continue
            message = json.loads(frame)
            if message["type"] == "execution_error":
                raise NodeError(message["data"]["exception_message"])
            if message["type"] == "execution_success" and message["data"]["prompt_id"] == job:
                return

    @contextlib.contextmanager
    def _listening(self) -> Iterator[tuple[websocket.WebSocket, str]]:
        client = uuid.uuid4().hex
        with contextlib.closing(websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}")) as ws:
            ws.settimeout(JOB_SECONDS)
            yield ws, client

    def wait(self, job: str) -> dict:
        """The history entry of a finished job."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            history = self.request(f"/history/{job}")
            if job in history and history[job]["status"]["status_str"]:
                return history[job]
            time.sleep(0.1)
        raise TimeoutError(job)

    def run(self, prompt: dict) -> dict:
        """The outputs of a prompt by node id; raises NodeError where it failed."""
        entry = self.wait(self.queue(prompt))
        for kind, message in entry["status"]["messages"]:
            if kind == "execution_error":
                raise NodeError(message["exception_message"])
        return entry["outputs"]

    def log(self) -> str:
        """What the newest server has written to its console."""
        newest = max(self.folder.glob("server-*.log"), key=lambda path: path.stat().st_mtime)
        return newest.read_text("utf-8", errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def start(folder: Path, *more: str) -> Host:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / f"server-{port}.log").open("w")
    options = ["--cpu", "--port", str(port), "--base-directory", str(folder), "--disable-auto-launch", *more]
    process = subprocess.Popen(
        [host_python(), "main.py", *options], cwd=host_checkout(), stdout=log, stderr=subprocess.STDOUT
    )
    host = Host(folder, port, process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            host.request("/system_stats")
            return host
        except (OSError, NodeError):
            time.sleep(0.5)
    raise RuntimeError("the host did not start:\n" + Path(log.name).read_text()[-3000:])
