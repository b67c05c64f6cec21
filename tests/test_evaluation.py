"""`evaluate`: the protocol's stages, what it reuses, and the arithmetic of its tables."""

import json
import math

import pytest
import torch
from PIL import Image

from seqlora_core.cli import main
from seqlora_core.evaluation.metrics import score
from seqlora_core.evaluation.protocol import Score
from seqlora_core.evaluation.tables import sem, summarize, to_csv, to_markdown, trajectory
from seqlora_core.mini import mini_concepts


def test_a_concepts_forgetting_is_initial_minus_final_and_the_mean_has_the_papers_sem():
    scores = [
        Score(1, "dog", "dino", 0.8),
        Score(2, "cat", "dino", 0.6),
        Score(2, "dog", "dino", 0.7),
        Score(3, "dog", "dino", 0.5),
        Score(3, "cat", "dino", 0.5),
        Score(3, "bag", "dino", 0.8),
    ]
    rows = {row.concept: row for row in summarize(scores)}
    assert rows["dog"].forgetting == pytest.approx(0.3)
    assert rows["cat"].forgetting == pytest.approx(0.1)
    assert rows["bag"].forgetting == 0
    assert rows[""].final == pytest.approx(0.6)
    assert rows[""].final_sem == pytest.approx(math.sqrt(0.03) / math.sqrt(3))  # deviations -0.1, -0.1, 0.2
    assert trajectory(scores, "dino") == pytest.approx([0.8, 0.65, 0.6])
    assert "**mean ± SEM**" in to_markdown(summarize(scores))
    assert to_csv(scores).splitlines()[1] == "1,dog,dino,0.800000"


def test_one_concept_has_no_standard_error():
    assert sem([0.5]) is None


def test_a_score_is_the_mean_over_all_pairs_of_pictures_and_references():
    class Colours:
        name, to_text = "colours", False

        def embed(self, pictures):
            return torch.tensor([[1.0, 0.0] if p.getpixel((0, 0))[0] else [0.0, 1.0] for p in pictures])

    red, black = (Image.new("RGB", (4, 4), colour) for colour in ("red", "black"))
    assert score(Colours(), [red, red], [red, black], "") == pytest.approx(0.5)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for concept in mini_concepts()[:2]:
        pictures = folder / "pictures" / concept.name
        pictures.mkdir(parents=True)
        for number, picture in enumerate(concept.references):
            picture.save(pictures / f"{number}.png")
        words = ["--name", concept.name, "--images", str(pictures), "--class-word", concept.class_word]
        assert main(["train", "--base", "mini", "--bank", str(folder / "bank"), *words, "--steps", "2"]) == 0
    return folder / "bank"


def test_an_evaluation_reports_every_concept_and_draws_nothing_twice(bank, tmp_path, capsys):
    command = ["evaluate", "--base", "mini", "--bank", str(bank), "--out", str(tmp_path), "--trajectory"]
    command += ["--images", "2", "--steps", "2"]
    assert main(command) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["concept"] for row in report["rows"]] == [*(c.name for c in mini_concepts()[:2]), ""]
    assert len(report["trajectory"]["identity"]) == 2
    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert len(pictures) == 2 * 3  # the first concept after both stages, the second after its own
    removed = next(iter(pictures))
    removed.unlink()
    assert main(command) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert again.keys() == pictures.keys()
    untouched = [path for path in pictures if path.parent != removed.parent]
    assert all(again[path] == pictures[path] for path in untouched)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base", "mini", "--metric", "taste"], "no metric 'taste'"),
        (["--base", "mini", "--metric", "dino=nowhere"], "weights of dino"),
        (["--base", "other.safetensors"], "Name a metric"),
        (["--base", "mini", "--references", "nowhere"], "no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(bank, tmp_path, capsys, arguments, words):
    capsys.readouterr()
    assert main(["evaluate", "--bank", str(bank), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
