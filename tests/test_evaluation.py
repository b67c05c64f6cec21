"""`evaluate`: the protocol's stages, what it reuses, its metrics, and the arithmetic of its tables."""

import json
import math

import pytest
import tiny_base
import tiny_metrics
import torch
from PIL import Image

from seqlora_core.cli import main
from seqlora_core.evaluation.metrics import load_metrics, score
from seqlora_core.evaluation.protocol import Score
from seqlora_core.evaluation.tables import sem, summarize, to_csv, to_markdown, trajectory


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


def test_dino_and_clip_find_a_picture_most_like_itself(tmp_path):
    dino, clip = tiny_metrics.save_dino(tmp_path / "dino"), tiny_metrics.save_clip(tmp_path / "clip")
    metrics = load_metrics([f"dino={dino}", f"dinov2={dino}", f"clip-i={clip}", f"clip-t={clip}"], "base.safetensors")
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    for metric in metrics[:3]:
        assert score(metric, [red], [red], "") == pytest.approx(1, abs=1e-5)
        assert score(metric, [red], [blue], "") < 1 - 1e-4
    assert score(metrics[3], [red], [blue], "a dog") == score(metrics[3], [red], [red], "a dog")
    assert score(metrics[3], [red], [red], "a dog") != score(metrics[3], [red], [red], "a cat")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `base`, `bank`, `references` and `dino`; the bank has a dog and a cat."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_base.save_folder(folder / "base")
    tiny_metrics.save_dino(folder / "dino")
    for name, colour in (("dog", "brown"), ("cat", "gray")):
        pictures = folder / "references" / name
        pictures.mkdir(parents=True)
        Image.new("RGB", (128, 128), colour).save(pictures / "0.png")
        words = ["--name", name, "--class-word", name, "--images", str(pictures), "--steps", "2"]
        assert main(["train", "--base", str(folder / "base"), "--bank", str(folder / "bank"), *words]) == 0
    return folder


def _evaluate(trained, out, *more: str) -> int:
    paths = ["--base", str(trained / "base"), "--bank", str(trained / "bank"), "--out", str(out)]
    return main(["evaluate", *paths, "--images", "2", "--steps", "2", "--size", "128", *more])


def test_an_evaluation_reports_every_concept_and_draws_nothing_twice(trained, tmp_path):
    metric = f"dino={trained / 'dino'}"
    wanted = ["--references", str(trained / "references"), "--metric", metric, "--trajectory"]
    assert _evaluate(trained, tmp_path, *wanted) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["concept"] for row in report["rows"]] == ["dog", "cat", ""]
    assert len(report["trajectory"]["dino"]) == 2
    assert all((tmp_path / name).is_file() for name in ("grid.png", "trajectory.png", "scores.csv", "report.md"))
    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert len(pictures) == 2 * 3  # the dog after both stages, the cat after its own
    removed = next(iter(pictures))
    removed.unlink()
    assert _evaluate(trained, tmp_path, *wanted) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert again.keys() == pictures.keys()
    assert all(again[path] == pictures[path] for path in pictures if path.parent != removed.parent)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name a metric"),
        (["--metric", "taste"], "no metric 'taste'"),
        (["--metric", "identity"], "mini base's pictures alone"),
        (["--metric", "dino=nowhere"], "weights of dino"),
        (["--metric", "dino=DINO"], "no reference pictures for dog, cat"),
        (["--metric", "dino=DINO", "--references", "nowhere"], "no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(trained, tmp_path, capsys, arguments, words):
    capsys.readouterr()
    arguments = [argument.replace("DINO", str(trained / "dino")) for argument in arguments]
    assert _evaluate(trained, tmp_path / "out", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
