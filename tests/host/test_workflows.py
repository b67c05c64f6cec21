"""The example workflows: graph and API twin agree, each runs, and so do the calls of one over HTTP."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "workflows"
NAMES = [
    "1-train-one",
    "2-train-three-and-compose",
    "3-compose-only",
    "4-two-subjects-in-one-image",
    "5-two-subjects-from-a-drawing",
    "6-draw-your-subjects.app",
]
READING = NAMES[2:]  # a bank
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"MarkdownNote", "Note"}
SMALLEST = {
    "CheckpointLoaderSimple": {"ckpt_name": "small.safetensors"},
    "SeqLoRATrainConcept": {"steps": 2, "resolution": 64, "alpha": 0.02},
    "ControlNetLoader": {"control_net_name": "small.safetensors"},
    "LoadImage": {"image": "dog.jpg"},
    "EmptyLatentImage": {"width": 128, "height": 64},
    "KSampler": {
        "steps": 2,
        "cfg": 1.0,
    },  # without guidance, half the passes
}
API = (ROOT / "web" / "docs" / "api.md").read_text("utf-8")
CURL = re.search(r"```bash\n(curl .+?)```", API, re.DOTALL)[1]
PYTHON = re.search(r"^python (workflows/\S+\.py) (workflows/\S+\.json) ", API, re.MULTILINE)  # script and workflow


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def read_api(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


def shrunk(prompt: dict, bank: str) -> dict:
    """The same prompt on the small checkpoint, with as few steps and pixels as will do, and a bank of its own."""
    small = {}
    for key, node in prompt.items():
        changes = dict(SMALLEST.get(node["class_type"], {}))
        if "bank_name" in node["inputs"]:
            changes["bank_name"] = bank
        small[key] = {**node, "inputs": {**node["inputs"], **changes}}
    return small


def widget_names(info: dict) -> list[str]:
    """A node's widgets in the order in which the front end stores their values."""
    names = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = (*info["input"][group][name], {})[:2]
            if isinstance(kind, list) or kind in WIDGETS:
                names.append(name)
                if options.get("control_after_generate", name in ("seed", "noise_seed")):
                    names.append(f"{name}: what happens after a run")
    return names


def as_prompt(graph: dict, nodes: dict) -> dict:
    """What the front end would queue for a graph."""
    links = {link: [str(source), slot] for link, source, slot, *_ in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        info, values = nodes[node["type"]], node.get("widgets_values") or []
        known = widget_names(info)
        assert len(values) <= len(known), f"{node['type']} has fewer widgets than the graph has values"
        own = {name: value for name, value in zip(known, values, strict=False) if ":" not in name}
        own |= {socket["name"]: links[socket["link"]] for socket in node["inputs"] if socket.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": own}
    return prompt


@pytest.fixture(scope="module")
def nodes(host) -> dict:
    return host.request("/object_info")


@pytest.fixture(scope="module")
def three(host, pictures) -> dict:
    """The outputs of the workflow that fills a bank, which the later ones read."""
    return host.run(shrunk(read_api("2-train-three-and-compose"), "three"))


def picture(host, outputs: dict) -> np.ndarray:
    """The one picture that a workflow saves."""
    (saved,) = [image for own in outputs.values() for image in own.get("images", []) if image["type"] == "output"]
    path = host.folder / "output" / saved["subfolder"] / saved["filename"]
    return np.asarray(Image.open(path)).astype(int)


def test_the_template_browser_offers_every_workflow_with_a_thumbnail(host):
    assert sorted(host.request("/workflow_templates")["seqlora"]) == sorted(NAMES)
    for name in NAMES:
        assert json.loads(host.fetch(f"/api/workflow_templates/seqlora/{name}.json"))["nodes"]
        thumbnail = host.fetch(f"/api/workflow_templates/seqlora/{name}.jpg")
        assert thumbnail.startswith(b"\xff\xd8")
        assert len(thumbnail) < 60_000


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_and_its_api_twin_are_the_same_prompt(nodes, name):
    twin = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in read_api(name).items()}
    assert as_prompt(read(name), nodes) == twin


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_names_only_inputs_and_outputs_that_the_host_knows(nodes, name):
    prompt = read_api(name)
    for node in prompt.values():
        info = nodes[node["class_type"]]
        groups = [info["input"].get(group, {}) for group in ("required", "optional")]
        assert set(groups[0]) <= set(node["inputs"]) <= {*groups[0], *groups[1]}
        for value in node["inputs"].values():
            if isinstance(value, list):
                source, slot = value
                assert slot < len(nodes[prompt[source]["class_type"]]["output"])


@pytest.mark.parametrize("name", NAMES)
def test_the_titles_of_groups_and_nodes_are_not_covered(name):
    """Boxes of nodes, with the title bar of 30 above each, lie apart, and below the title of the group around them."""
    graph = read(name)
    boxes = [
        (n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in graph["nodes"]
    ]
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        for group in graph["groups"]:
            x, y, width, height = group["bounding"]
            inside = x <= left and right <= x + width and y <= top and bottom <= y + height
            outside = right <= x or x + width <= left or bottom <= y or y + height <= top
            assert outside or (inside and top - y >= 1.4 * group["font_size"])


@pytest.mark.smoke
def test_train_one_learns_and_shows_the_difference(host, pictures):
    outputs = host.run(shrunk(read_api("1-train-one"), "one"))
    shown = {image["type"] for own in outputs.values() for image in own.get("images", [])}
    assert shown == {"output", "temp"}
    assert any("dog learned" in text for own in outputs.values() for text in own.get("text", []))


def test_train_three_learns_one_after_another_and_composes(host, three):
    text = "\n".join(str(line) for own in three.values() for line in own.get("text", []))
    assert all(f"{subject} learned" in text for subject in ("dog", "cat", "backpack"))
    assert "sksdog, skscat, sksbackpack" in text
    assert picture(host, three).shape == (64, 128, 3)


@pytest.mark.parametrize("name", READING)
def test_a_workflow_that_reads_a_bank_runs_and_its_concepts_act(host, three, name):
    prompt = shrunk(read_api(name), "three")
    drawn = picture(host, host.run(prompt))
    for node in prompt.values():
        if node["class_type"] in ("SeqLoRAComposeConcepts", "SeqLoRAComposeRegions"):
            node["inputs"]["concepts"] = "dog:0, cat:0"
    assert np.abs(drawn - picture(host, host.run(prompt))).max() > 2


def test_the_seed_of_a_training_does_not_change_by_itself(nodes):
    """The front end would randomize it after each run, and the next run would ask for another concept."""
    (_, options) = nodes["SeqLoRATrainConcept"]["input"]["required"]["seed"]
    assert options["control_after_generate"] is False


def test_no_two_outputs_of_a_node_have_the_same_name(nodes):
    for name, info in nodes.items():
        if name.startswith("SeqLoRA"):
            assert len(set(info["output_name"])) == len(info["output_name"])


@pytest.fixture
def checkout(host, three, tmp_path, monkeypatch):
    """A current folder with the API file, which reads a bank that is there."""
    folder = tmp_path / "workflows" / "api"
    folder.mkdir(parents=True)
    (folder / "3-compose-only.json").write_text(json.dumps(shrunk(read_api("3-compose-only"), "three")), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(host) -> subprocess.CompletedProcess:
    """The script of the API's page, in the checkout, with the workflow that is named there."""
    script, workflow = PYTHON.groups()
    command = [sys.executable, ROOT / script, workflow, f"127.0.0.1:{host.port}"]
    return subprocess.run(command, capture_output=True, text=True)


def change_workflow(checkout: Path, change) -> None:
    """Apply `change` to the Compose Concepts node of the checkout's workflow."""
    path = checkout / PYTHON[2]
    prompt = json.loads(path.read_text("utf-8"))
    (node,) = [node for node in prompt.values() if node["class_type"] == "SeqLoRAComposeConcepts"]
    change(node)
    path.write_text(json.dumps(prompt), "utf-8")


def test_the_python_example_follows_the_run_and_fetches_the_picture(host, checkout):
    result = run_example(host)
    assert result.returncode == 0, result.stderr
    assert "Draw: 2 of 2" in result.stdout
    assert "sksdog, skscat" in result.stdout
    (file,) = checkout.glob("*.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {file.name}" in result.stdout


def test_the_python_example_says_what_was_wrong(host, checkout):
    change_workflow(checkout, lambda node: node["inputs"].update(concepts="bird"))
    failed = run_example(host)
    assert failed.returncode == 1
    assert "Failed: " in failed.stderr and "no concept 'bird'" in failed.stderr
    change_workflow(checkout, lambda node: node.update(class_type="dog:1"))
    refused = run_example(host)
    assert refused.returncode == 1
    assert "Refused: " in refused.stderr


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="needs curl and bash")
def test_the_curl_lines_queue_ask_and_fetch(host, checkout):
    queue, ask, fetch = CURL.replace("127.0.0.1:8188", f"127.0.0.1:{host.port}").splitlines()

    def output(command: str) -> str:
        return subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout

    job = json.loads(output(queue))["prompt_id"]
    (saved,) = [image for own in host.wait(job)["outputs"].values() for image in own.get("images", [])]
    assert job in json.loads(output(ask))
    output(fetch.replace("composed_00001_.png", saved["filename"]))
    assert (checkout / "picture.png").read_bytes().startswith(b"\x89PNG")
