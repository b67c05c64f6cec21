"""Queue a workflow in a running ComfyUI, follow it, and save its images in the current folder.

    pip install websocket-client
    python queue_workflow.py WORKFLOW.json [HOST:PORT]

The workflow is a file in ComfyUI's API format, such as `3-compose-only.json` in this script's folder.
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import websocket


def main(workflow: str, server: str = "127.0.0.1:8188") -> None:
    """Run one workflow; exits with what ComfyUI says where it refuses the workflow or a node fails."""
    prompt = json.loads(Path(workflow).read_text("utf-8"))
    client = uuid.uuid4().hex
    events = websocket.create_connection(f"ws://{server}/ws?clientId={client}")  # first, or early events are missed
    body = json.dumps({"prompt": prompt, "client_id": client}).encode()
    try:
        job = json.load(urllib.request.urlopen(f"http://{server}/prompt", body))["prompt_id"]
    except urllib.error.HTTPError as error:
        sys.exit(f"Refused: {error.read().decode()}")
    follow(events, job, prompt)
    save_outputs(server, job)


def follow(events: websocket.WebSocket, job: str, prompt: dict) -> None:
    """Print progress until the job has finished."""
    kind, data = None, {}
    while kind != "executing" or data["node"] is not None:  # without a node: the job has finished
        frame = events.recv()
        if isinstance(frame, bytes):
            continue  # a preview image
        message = json.loads(frame)
        if message["data"].get("prompt_id") != job:
            continue
        kind, data = message["type"], message["data"]
        if kind == "progress":
            print(f"{prompt[data['node']]['_meta']['title']}: {data['value']} of {data['max']}")
        if kind == "execution_error":
            sys.exit(f"Failed: {data['exception_message']}")


def save_outputs(server: str, job: str) -> None:
    """Print the texts of a finished job and save its images."""
    history = json.load(urllib.request.urlopen(f"http://{server}/history/{job}"))
    for outputs in history[job]["outputs"].values():
        for text in outputs.get("text", []):
            print(text)
        for image in outputs.get("images", []):
            content = urllib.request.urlopen(f"http://{server}/view?{urllib.parse.urlencode(image)}").read()
            Path(image["filename"]).write_bytes(content)
            print(f"wrote {image['filename']}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
