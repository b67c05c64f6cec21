"""An empty bank of four narrow layers."""

import pytest
from small_bank import BASE, LAYERS

from seqlora_core.bank import Bank


@pytest.fixture
def empty_bank(tmp_path) -> Bank:
    return Bank.open_or_create(tmp_path / "my bank", BASE, LAYERS)
