"""Mistakes in `evaluate`; what it measures is tested with the evaluation."""

import pytest

MISTAKES = {
    "prompt without a place": (["--prompt", "a photo"], "needs {} once"),
    "prompt with another place": (["--prompt", "{{}} in {{where}}"], "needs {} once"),
    "output inside a file": (["--metric", "identity", "--out", "{broken}/a.png/x"], "Cannot write"),
    "guidance without end": (["--guidance", "inf"], "--guidance: must be a finite number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_writes_nothing(base_folder, bank, tmp_path, refuse, mistake):
    arguments, message = MISTAKES[mistake]
    refuse(["evaluate", "--base", base_folder, "--bank", bank, "--out", tmp_path / "x.out", *arguments], message)
