"""What can be known to fail, fails before any picture is encoded."""

import pytest
import torch
from banks import occupy
from comfy_server import NodeError
from graphs import loader, part_of_checkpoint, text, training
from safetensors.torch import save_file

from seqlora_core.bank import Bank

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bank(host) -> Bank:
    """One with a concept "dog", made in the host."""
    host.run({**loader(), **training("dog", bank_name="checks")})
    return Bank.open(host.folder / "models" / "seqlora" / "checks")


def unencodable(**changes) -> dict:
    vae = {"vae": {"class_type": "TestsUnusableVae", "inputs": {"vae": ["base", 2]}}}
    return {**loader(), **vae, **training("cat", **{"bank_name": "checks", "vae": ["vae", 0], **changes})}


def test_a_taken_name_is_refused_before_pictures_are_encoded(host, bank):
    with pytest.raises(NodeError, match="already has a concept 'dog'"):
        host.run(unencodable(concept_name="Dog", on_existing="error"))


def test_a_rank_without_room_is_refused_before_pictures_are_encoded(host, bank):
    with pytest.raises(NodeError, match="a picture was encoded"):
        host.run(unencodable(rank=4))
    occupy(bank, "big", free=3)
    with pytest.raises(NodeError, match="No layer has room for rank 4: at most 3 directions are free"):
        host.run(unencodable(rank=4))


@pytest.fixture(scope="module")
def others(host) -> dict:
    """Nodes that give what a training cannot use."""
    vae = part_of_checkpoint(host, "first_stage_model.")
    last = max(int(key.split(".")[1]) for key in vae if key.startswith("taesd_encoder"))
    for part in ("weight", "bias"):
        vae[f"taesd_encoder.{last}.{part}"] = torch.cat([vae[f"taesd_encoder.{last}.{part}"]] * 4)
    vae["taesd_decoder.1.weight"] = torch.cat([vae["taesd_decoder.1.weight"]] * 4, dim=1)
    (host.folder / "models" / "vae").mkdir(exist_ok=True)
    save_file(vae, host.folder / "models" / "vae" / "of-flux.safetensors")
    return {
        "nothing": {"class_type": "TestsNothing", "inputs": {}},
        "wide": {"class_type": "TestsWideTexts", "inputs": {"clip": ["base", 1]}},
        "of-flux": {"class_type": "VAELoader", "inputs": {"vae_name": "of-flux.safetensors"}},
    }


UNUSABLE = {
    "no CLIP": ({"clip": ["nothing", 0]}, "No CLIP is on the input clip"),
    "no VAE": ({"vae": ["nothing", 0]}, "No VAE is on the input vae"),
    "a VAE of another model": ({"vae": ["of-flux", 0]}, "input vae makes latents of 16 channels"),
    "no model": ({"model": ["nothing", 0]}, "No MODEL is on the input model"),
    "no pictures": ({"images": ["nothing", 1]}, "no image on the input images"),
    "nothing as pictures": ({"images": ["nothing", 0]}, "no image on the input images"),
    "an empty list as the token": ({"token": ["nothing", 2]}, "input token received an empty list"),
    "a mask of a photo without one": ({"masks": ["photo-cat", 1]}, "Mask 1 of 1 is empty"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_inputs_that_cannot_be_used_are_named_before_a_bank_is_made(host, others, case):
    changes, message = UNUSABLE[case]
    with pytest.raises(NodeError, match=message):
        host.run({**others, **unencodable(bank_name="never made", **changes)})
    assert not (host.folder / "models" / "seqlora" / "never made").exists()


def test_the_text_encoder_of_another_model_is_refused_before_pictures_are_encoded(host, others):
    with pytest.raises(NodeError, match="input clip makes texts of width 1536"):
        host.run({**others, **unencodable(bank_name="wide", clip=["wide", 0])})


def test_a_mask_of_another_shape_covers_its_whole_picture(host):
    """Painted in its left quarter alone, which lies outside of its own middle square."""
    nodes = {
        "blank": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 200, "height": 100}},
        "part": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 50, "height": 100}},
        "mask": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["blank", 0], "source": ["part", 0], "x": 0, "y": 0, "operation": "add"},
        },
    }
    trained = training("cat", bank_name="masked", masks=["mask", 0], steps=1)
    assert "cat learned" in text(host.run({**loader(), **nodes, **trained}), "train-cat")
