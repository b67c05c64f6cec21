"""A real ComfyUI on the CPU with the pack installed as a custom node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import READY, Browser, chromium
from comfy_server import host_checkout, host_python, start
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "dreambooth"


def not_installed() -> list[str]:
    """Names that are in no archive of the registry's: what Git ignores, and what `.comfyignore` adds."""
    lines = [line for name in (".gitignore", ".comfyignore") for line in (ROOT / name).read_text("utf-8").splitlines()]
    return [line.rstrip("/") for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of photos per subject; drawings, where the shared photos are not."""
    if PHOTOS.is_dir():
        return PHOTOS
    folder = tmp_path_factory.mktemp("drawings")
    for subject, colour in (("dog", "sienna"), ("cat", "black"), ("backpack", "crimson")):
        (folder / subject).mkdir()
        for number in range(5):
            image = Image.new("RGB", (160, 200 + 8 * number), ("khaki", "skyblue", "seagreen")[number % 3])
            ImageDraw.Draw(image).ellipse((20 + 4 * number, 40, 120, 170), fill=colour)
            image.save(folder / subject / f"{number:02}.jpg")
    return folder


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory, photos) -> Path:
    """The host's folders: the pack copied in (as an installer does), a checkpoint, photos."""
    if not (host_checkout() / "main.py").is_file() or not host_python().is_file():
        pytest.skip(f"no ComfyUI at {host_checkout()} with the interpreter {host_python()}")
    folder = tmp_path_factory.mktemp("comfy")
    pack = folder / "custom_nodes" / "seqlora"
    shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(".git", *not_installed()))
    shutil.copy(Path(__file__).parent / "stand_ins.py", pack.parent)
    for subject in ("dog", "cat", "backpack"):
        (folder / "input").mkdir(exist_ok=True)
        shutil.copy(photos / subject / "00.jpg", folder / "input" / f"{subject}.jpg")
    shutil.copytree(photos / "cat", folder / "input" / "cat photos")
    shutil.copy(folder / "input" / "dog.jpg", folder / "input" / "example.png")  # the host brings an image of that name
    (folder / "models" / "loras").mkdir(parents=True)
    checkpoint = folder / "models" / "checkpoints" / "small.safetensors"
    controlnet = folder / "models" / "controlnet" / "small.safetensors"
    for path in (checkpoint, controlnet):
        path.parent.mkdir()
    script = Path(__file__).parent / "make_checkpoint.py"
    subprocess.run([host_python(), script, host_checkout(), checkpoint, controlnet], check=True, capture_output=True)
    # By the name that a template asks for: the page would offer to download it.
    shutil.copy(controlnet, controlnet.with_name("control_v11p_sd15_scribble_fp16.safetensors"))
    return folder


@pytest.fixture(scope="session")
def host(base_directory):
    server = start(base_directory)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pictures(host, photos) -> None:
    """The folders that the example workflows name, with two pictures each."""
    for subject in ("dog", "cat", "backpack"):
        folder = host.folder / "input" / subject
        folder.mkdir()
        for file in sorted((photos / subject).glob("*.jpg"))[:2]:
            shutil.copy(file, folder)


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    """The host's page in a browser."""
    if chromium() is None:
        pytest.skip("no Chromium: install one, or name it in CHROMIUM")
    if "UpscaleModelLoader" not in host.request("/object_info"):
        pytest.skip("this ComfyUI lacks spandrel, one of its own requirements, without which its front end fails")
    # The workflows name the checkpoint that a user has; the front end says so where it is missing.
    small = host.folder / "models" / "checkpoints" / "small.safetensors"
    named = json.loads((ROOT / "workflows" / "api" / "1-train-one.json").read_text("utf-8"))["2"]["inputs"]["ckpt_name"]
    if not (small.parent / named).exists():
        (small.parent / named).hardlink_to(small)
    host.request("/settings/Comfy.TutorialCompleted", True)  # or a first visit begins with the template browser
    browser = Browser(tmp_path_factory.mktemp("browser"))
    browser.open(f"http://127.0.0.1:{host.port}/")
    browser.wait_for(READY)
    browser.wait_for("!document.querySelector('.p-blockui-mask')")
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    yield browser
    browser.close()
