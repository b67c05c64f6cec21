"""Fingerprints are stored in banks and checkpoints: their values are those of the releases before."""

import pytest
import torch
from PIL import Image

from seqlora_core import hashing
from seqlora_core.data.dataset import EncodedConcept, Example

WEIGHTS = {"a": torch.arange(1000.0).reshape(100, 10) / 7, "b": torch.ones(())}
RED, GRAY = Image.new("RGB", (3, 2), "red"), Image.new("L", (2, 2), 7)
ENCODED = EncodedConcept(
    [
        Example(torch.arange(16.0).reshape(4, 2, 2) / 3, torch.ones(1, 2, 3)),
        Example(torch.ones(4, 2, 2), torch.zeros(1, 2, 3), torch.ones(4, 2, 2), torch.ones(1, 2, 2)),
    ],
    prior=[Example(torch.ones(4, 2, 2), torch.zeros(1, 2, 3))],
)
CONCEPT = [(RED, ("a sksdog dog", "b"), 1), (RED.transpose(Image.Transpose.ROTATE_90), ("ü",), 1)]


@pytest.mark.parametrize(
    ("found", "stored"),
    [
        (lambda: hashing.fingerprint(WEIGHTS), "d2b65b4f58e0d83f19feb7ef0688b299"),
        (lambda: hashing.fingerprint(WEIGHTS, torch.bfloat16), "0eac3ca6a16ee5bd50c373b1cd702d9f"),
        (lambda: hashing.fingerprint(WEIGHTS, torch.float32), "f89ef4802f37c65036e32ba2aaab3925"),
        (lambda: hashing.digest(["x", 1.5, {"b": 2, "a": None}]), "288340253d72ab91847ce4390abeb571"),
        (
            lambda: hashing.data_fingerprint("e" * 32, CONCEPT, CONCEPT[:1]),
            "8bb84b6cd22b5cfaf7bddbffdf4f8f30f6c8b31af4a51f6130fba4d52bde219a",
        ),
        (
            lambda: hashing.data_fingerprint("e" * 32, CONCEPT, []),
            "86a6f6d73ed1a5f967e519ac563316bf5d2b12ccd22937d14add128072cba22f",
        ),
        (
            ENCODED.encoded_fingerprint,
            "04c4d41b5046e77e8f8480f63b01daf92729d08678bd6cc7f12a6b9055225ec3",
        ),
        (
            lambda: hashing.images_fingerprint([RED, GRAY]),
            "43a5b78acdab42245a99cea5b47153f42d158053753d2c36238498671d9b89ee",
        ),
    ],
)
def test_fingerprints_keep_the_values_that_are_stored(found, stored):
    assert found() == stored


def test_a_checksum_is_what_sha256sum_prints():
    assert hashing.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
