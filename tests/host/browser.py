"""A headless Chromium, spoken to over its DevTools protocol with nothing but a websocket."""

import base64
import contextlib
import copy
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket
from comfy_server import Host

READY = "window.app?.extensionManager && window.LiteGraph?.registered_node_types?.SeqLoRAInspectBank"
GRAPH = "app.graph._nodes"
ARROWS = ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown")
SECONDS = 300  # a page of the front end is some megabytes of JavaScript, and machines differ


def chromium() -> str | None:
    """The browser in `CHROMIUM`, or one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class JavaScriptError(Exception):
    """An expression threw."""


class Browser:
    """One page.

    Attributes:
        errors: what the console and uncaught exceptions said since the list was last cleared.
    """

    def __init__(self, folder: Path) -> None:
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--window-size=1900,1100"]
        command = [chromium(), *options, "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.errors: list[str] = []
        self._numbers = itertools.count(1)
        port_file = folder / "DevToolsActivePort"
        wait_until(lambda: port_file.is_file() and port_file.read_text().count("\n"), "the browser did not start")
        self._port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json/list") as response:
            (page,) = [target for target in json.load(response) if target["type"] == "page"]
        self._attach(page)

    def _attach(self, page: dict) -> None:
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=SECONDS)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @contextlib.contextmanager
    def second_tab(self, address: str) -> Iterator["Browser"]:
        """Another page of the same user."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?{address}", method="PUT")
        with urllib.request.urlopen(request) as response:
            page = json.load(response)
        tab = copy.copy(self)
        tab.errors = []
        tab._attach(page)
        yield tab
        tab.call("Page.close")
        tab._socket.close()

    def call(self, method: str, **parameters) -> dict:
        """One command of the protocol; events that come before its answer are looked through for errors."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise JavaScriptError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript condition holds."""
        wait_until(lambda: self.evaluate(f"Boolean({condition})"), f"waited in vain for {condition}")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def click(self, selector: str, text: str, until: str = "true") -> None:
        """Click the innermost element with exactly that text; again, until a condition holds (pages build up late)."""
        found = find(selector, text)
        self.wait_for(f"{found} && ({found}.click(), true) && {until}")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """A "mousePressed", "mouseMoved" or "mouseReleased" of the left button."""
        buttons = 0 if kind == "mouseReleased" else 1
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def middle(self, selector: str, index: int = 0) -> tuple[float, float]:
        """The middle of an element, in px of the window."""
        found = f"document.querySelectorAll({selector!r})[{index}]"
        self.wait_for(f"{found}?.getBoundingClientRect().width")
        x, y = self.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        return x, y

    def drag(self, selector: str, index: int = 0, right: float = 0, down: float = 0) -> None:
        """Press the mouse on an element, move it by some px, and let go; a click where both are 0."""
        x, y = self.middle(selector, index)
        self.mouse("mousePressed", x, y)
        for part in (0.25, 0.5, 0.75, 1) if right or down else ():
            self.mouse("mouseMoved", x + part * right, y + part * down)
        self.mouse("mouseReleased", x + right, y + down)

    def key(self, key: str, shift: bool = False, control: bool = False) -> None:
        """Press and release a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "Delete": 46, "z": 90}.get(key) or 37 + ARROWS.index(key)
        for kind in ("rawKeyDown", "keyUp"):
            own = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", **own, modifiers=8 * shift + 2 * control)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)


def find(selector: str, text: str) -> str:
    """JavaScript for the innermost element with exactly that text, or undefined."""
    return f"[...document.querySelectorAll({selector!r})].findLast(e => e.textContent.trim() === {text!r})"


def wait_until(condition, complaint: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.3)


def own_errors(page: Browser, host: Host) -> list[str]:
    """Without those of addresses elsewhere, and of the front end's own files that a host may lack.

    The front end asks for news, and a machine may be offline.
    """
    ours = [error for error in page.errors if "https://" not in error or f":{host.port}/" in error]
    lacking = (f":{host.port}/templates/", f":{host.port}/api/userdata/", "AxiosError", "core workflow templates")
    return [error for error in ours if not any(text in error for text in lacking)]  # we do not use Axios


def draw_nodes_as_elements(page: Browser, on: bool) -> None:
    """Switch between the classic canvas and Nodes 2.0; skips the test where the front end has no elements in those."""
    if on and int(page.evaluate("window.__COMFYUI_FRONTEND_VERSION__.split('.')[1]")) < 40:
        pytest.skip("this front end has no Nodes 2.0, or a first attempt")
    page.evaluate(f"app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {json.dumps(on)})")
