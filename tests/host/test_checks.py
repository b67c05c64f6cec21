"""What can be known to fail, fails before any picture is encoded."""

import pytest
from banks import occupy
from comfy_server import NodeError
from graphs import loader, training

from seqlora_core.bank import Bank

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bank(host) -> Bank:
    """One with a concept "dog", made in the host."""
    host.run({**loader(), **training("dog", bank_name="checks")})
    return Bank.open(host.folder / "models" / "seqlora" / "checks")


def unencodable(**changes) -> dict:
    vae = {"vae": {"class_type": "TestsUnusableVae", "inputs": {}}}
    return {**loader(), **vae, **training("cat", bank_name="checks", vae=["vae", 0], **changes)}


def test_a_taken_name_is_refused_before_pictures_are_encoded(host, bank):
    with pytest.raises(NodeError, match="already has a concept 'dog'"):
        host.run(unencodable(concept_name="Dog", on_existing="error"))


def test_a_rank_without_room_is_refused_before_pictures_are_encoded(host, bank):
    with pytest.raises(NodeError, match="a picture was encoded"):
        host.run(unencodable(rank=4))
    occupy(bank, "big", free=3)
    with pytest.raises(NodeError, match="No layer has room for rank 4: at most 3 directions are free"):
        host.run(unencodable(rank=4))
