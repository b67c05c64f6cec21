"""Shared fixtures: a small UNet in memory, random examples, and a reduced-width SD1.5 base on disk."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait for each other's cores take several times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import tiny_base
import torch

from seqlora_core.bank import Bank, BaseIdentity
from seqlora_core.devices import resolve_device
from seqlora_core.hashing import fingerprint
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.model.sd15 import find_layers, layer_shapes, sd15_alphas_cumprod
from seqlora_core.model.text_encoder import CLIPTextEncoder

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is no failure
hypothesis.settings.load_profile("any machine")

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"


@pytest.fixture(scope="session")
def photos() -> Path:
    if not PHOTOS.is_dir():
        pytest.skip(f"the shared photos are not at {PHOTOS}")
    return PHOTOS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the models that fixtures make (default: cpu)")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return resolve_device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def denoiser(device) -> DiffusersDenoiser:
    """A UNet of two levels, 24 adapted layers of width 32 and 64, text width 32."""
    return DiffusersDenoiser(tiny_base.make_unet((32, 64), 1, 32).to(device), sd15_alphas_cumprod())


@pytest.fixture(scope="session")
def base_identity(denoiser) -> BaseIdentity:
    weights = {name: layer.weight for name, layer in find_layers(denoiser.unet).items()}
    return BaseIdentity("tiny", fingerprint(weights))


@pytest.fixture
def bank(tmp_path, denoiser, base_identity) -> Bank:
    return Bank.open_or_create(tmp_path / "bank", base_identity, layer_shapes(find_layers(denoiser.unet)))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A diffusers folder with SD1.5's topology at reduced width."""
    return tiny_base.save_folder(tmp_path_factory.mktemp("base") / "small-sd")


@pytest.fixture(scope="session")
def base_file(tmp_path_factory) -> Path:
    """The same weights as one file in SD1.5's original layout."""
    return tiny_base.save_single_file(tmp_path_factory.mktemp("file") / "small-sd.safetensors")


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory, device) -> CLIPTextEncoder:
    """A text encoder of the width that the UNet in memory takes."""
    tokenizer = tiny_base.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return CLIPTextEncoder(tokenizer, tiny_base.make_text_encoder(tokenizer, 32).to(device))
