"""`evaluate`: the protocol's stages, what it reuses, its metrics, and the arithmetic of its tables."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny_base
import tiny_metrics
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, ViTImageProcessor, ViTModel

from seqlora_core.cli.main import main
from seqlora_core.evaluation import protocol
from seqlora_core.evaluation.metrics import load_metrics, score
from seqlora_core.evaluation.protocol import EvaluationSettings, Score
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
    assert trajectory(scores, "dino") == pytest.approx({1: 0.8, 2: 0.65, 3: 0.6})
    assert list(trajectory(scores[:1] + scores[3:], "dino")) == [1, 3]  # not of every stage
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


CPU = torch.device("cpu")


def test_every_metric_finds_a_picture_most_like_itself(tmp_path):
    clip, dino = tiny_metrics.save_clip(tmp_path / "clip"), tiny_metrics.save_dino(tmp_path / "dino")
    dinov2, dinov3 = tiny_metrics.save_dinov2(tmp_path / "dinov2"), tiny_metrics.save_dinov3(tmp_path / "dinov3")
    requests = [f"dino={dino}", f"dinov2={dinov2}", f"dinov3={dinov3}", f"clip-i={clip}", f"clip-t={clip}"]
    metrics = load_metrics(requests, "base.safetensors", CPU)
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    *of_images, of_text = metrics
    for metric in of_images:
        assert score(metric, [red], [red], "") == pytest.approx(1, abs=1e-5)
        assert score(metric, [red], [blue], "") < 1 - 1e-4
    assert score(of_text, [red], [blue], "a dog") == score(of_text, [red], [red], "a dog")
    assert score(of_text, [red], [red], "a dog") != score(of_text, [red], [red], "a cat")


def test_embeddings_are_those_that_transformers_itself_gives(tmp_path):
    dino, clip = tiny_metrics.save_dino(tmp_path / "dino"), tiny_metrics.save_clip(tmp_path / "clip")
    picture = Image.effect_noise((36, 36), 90).convert("RGB")
    of_dino, of_clip, of_text = load_metrics([f"dino={dino}", f"clip-i={clip}", f"clip-t={clip}"], "", CPU)
    with torch.no_grad():
        pixels = ViTImageProcessor.from_pretrained(dino)(picture.crop((2, 2, 34, 34)), return_tensors="pt")
        class_token = ViTModel.from_pretrained(dino)(**pixels).last_hidden_state[:, 0]
        process, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
        both = model(**process(text=["a dog"], images=picture, return_tensors="pt"))
    assert torch.cosine_similarity(of_dino.embed([picture]), class_token).item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(of_clip.embed([picture]), both.image_embeds, atol=1e-5)
    assert torch.allclose(of_text.embed_text("a dog"), both.text_embeds, atol=1e-5)


def test_dino_sees_the_middle_of_a_photo_and_does_not_squeeze_it(tmp_path):
    [metric] = load_metrics([f"dino={tiny_metrics.save_dino(tmp_path)}"], "", CPU)
    square = Image.effect_noise((36, 36), 90).convert("RGB")
    wide = Image.new("RGB", (72, 36), "red")
    wide.paste(square, (18, 0))
    assert score(metric, [wide], [square], "") == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `base`, `bank`, `references`, `dino` and `clip`; the bank has a dog and a cat."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_base.save_folder(folder / "base")
    tiny_metrics.save_dino(folder / "dino")
    tiny_metrics.save_clip(folder / "clip")
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


def _wanted(trained) -> list[str]:
    return ["--references", str(trained / "references"), "--metric", f"dino={trained / 'dino'}"]


def test_an_evaluation_reports_every_concept_and_draws_nothing_twice(trained, tmp_path):
    wanted = [*_wanted(trained), "--trajectory"]
    assert _evaluate(trained, tmp_path, *wanted) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["concept"] for row in report["rows"]] == ["dog", "cat", ""]
    assert list(report["trajectory"]["dino"]) == ["1", "2"]
    assert all((tmp_path / name).is_file() for name in ("grid.png", "trajectory.png", "scores.csv", "report.md"))
    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert len(pictures) == 2 * 3  # the dog after both stages, the cat after its own
    removed = next(iter(pictures))
    removed.unlink()
    assert _evaluate(trained, tmp_path, *wanted) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    assert again.keys() == pictures.keys()
    assert [path for path in pictures if again[path] != pictures[path]] == [removed]
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report


def test_the_protocol_is_the_paper_s_unless_something_else_is_asked_for():
    settings = EvaluationSettings()
    assert (settings.prompt, settings.sampling.count) == ("photo of a {}", 16)


def test_own_words_draw_anew_and_a_later_concept_changes_nothing(trained, tmp_path):
    wanted = [*_wanted(trained), "--images", "1"]
    assert _evaluate(trained, tmp_path, *wanted) == 0
    plain = set(tmp_path.rglob("pictures/**/*.png"))
    assert _evaluate(trained, tmp_path, *wanted, "--own-words") == 0
    confined = set(tmp_path.rglob("pictures/**/*.png")) - plain
    assert len(confined) == len(plain) == 3  # the dog alone and beside the cat, and the cat
    alone, beside = (Image.open(path).tobytes() for path in confined if path.parent.parent.name == "dog")
    assert max(abs(a - b) for a, b in zip(alone, beside, strict=True)) <= 1
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["drawing"]["own_words"] is True


def test_an_interrupted_evaluation_keeps_every_picture_that_was_drawn(trained, tmp_path, monkeypatch):
    drawn, generate = [], protocol.generate

    def interrupted(base, prompt, adapters, settings, words):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(list(range(settings.seed, settings.seed + settings.count)))
        return generate(base, prompt, adapters, settings, words)

    monkeypatch.setattr(protocol, "generate", interrupted)
    assert _evaluate(trained, tmp_path, *_wanted(trained), "--images", "9") == 130
    assert len(list(tmp_path.rglob("pictures/**/*.png"))) == 8
    drawn[:] = [[]]
    _evaluate(trained, tmp_path, *_wanted(trained), "--images", "9")
    assert drawn[1] == [8]


def test_what_changes_a_picture_or_a_score_is_made_again_and_nothing_else(trained, tmp_path, monkeypatch):
    drawn, scored, generate, similarity = [], [], protocol.generate, protocol.similarity

    def drawing(base, prompt, adapters, settings, words):
        drawn.extend(range(settings.seed, settings.seed + settings.count))
        return generate(base, prompt, adapters, settings, words)

    def scoring(metric, *rest):
        scored.append(metric.name)
        return similarity(metric, *rest)

    monkeypatch.setattr(protocol, "generate", drawing)
    monkeypatch.setattr(protocol, "similarity", scoring)

    def made(*more: str) -> tuple[list[int], list[str]]:
        drawn.clear(), scored.clear()
        assert _evaluate(trained, tmp_path, *_wanted(trained), *more) == 0
        return drawn[:], scored[:]

    assert made() == ([0, 1] * 3, ["dino"] * 3)
    assert made() == ([], [])
    assert made("--images", "3") == ([2] * 3, ["dino"] * 3)
    assert made("--metric", f"clip-i={trained / 'clip'}") == ([], ["clip-i"] * 3)
    assert made("--guidance", "3") == ([0, 1] * 3, ["dino"] * 3)
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    Image.new("RGB", (128, 128), "white").save(other / "references" / "cat" / "0.png")
    assert made("--references", str(other / "references")) == ([], ["dino"])
    vae = other / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: 0.9 * weight for key, weight in load_file(vae).items()}, vae)
    assert made("--base", str(other / "base")) == ([0, 1] * 3, ["dino"] * 3)


def test_the_prompts_of_a_list_are_drawn_for_its_concepts_and_averaged(trained, tmp_path):
    (tmp_path / "dog.txt").write_text("photo of a {}.\n\ndog in the snow\n", "utf-8")  # one published file names it
    (tmp_path / "cat.txt").write_text("a {} on a sofa\n{} oil painting\nthe {}\n", "utf-8")
    entries = [
        {"name": name, "images": str(trained / "references" / name), "class_word": name, "prompts": f"{name}.txt"}
        for name in ("dog", "cat")
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries), "utf-8")
    wanted = ["--stream", str(tmp_path / "list.json"), "--metric", f"clip-t={trained / 'clip'}", "--images", "1"]
    assert _evaluate(trained, tmp_path / "out", *wanted) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["drawing"]["prompts"]["dog"] == ["photo of a {}.", "{} in the snow"]
    assert len(list((tmp_path / "out").rglob("pictures/dog/*/0.png"))) == 2 * 2  # both prompts, after both stages
    assert len(list((tmp_path / "out").rglob("pictures/cat/*/0.png"))) == 3
    singles = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "out").rglob("pictures/cat/*/scores.json")]
    final = next(row["final"] for row in report["rows"] if row["concept"] == "cat")
    assert final == pytest.approx(sum(sum(scores.values()) for scores in singles) / 3)
    assert _evaluate(trained, tmp_path / "first", *wanted, "--prompts-per-concept", "1") == 0
    assert len(list((tmp_path / "first").rglob("pictures/*/*/0.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name a metric"),
        (["--metric", "dino=DINO", "--prompts", "nowhere.txt"], "no file of prompts"),
        (["--metric", "dino=DINO", "--prompts", "BAD"], "Line 2 of"),
        (["--metric", "dino=DINO", "--prompt", "a {}", "--prompts", "BAD"], "only one of them"),
        (["--metric", "dino=DINO", "--prompts-per-concept", "2"], "counts prompts of files"),
        (["--metric", "dino=DINO", "--stream", "LIST"], "has no entry for the concept 'dog'"),
        (["--metric", "dino=DINO", "--metric", "dino=DINO"], "named twice"),
        (["--metric", "dino=CLIP"], "holds a model of the kind 'clip': dino needs one of vit"),
        (["--metric", "dinov2=DINO"], "dinov2 needs one of dinov2"),
        (["--metric", "taste"], "no metric 'taste'"),
        (["--metric", "identity"], "images of the mini base only"),
        (["--metric", "dino=nowhere"], "weights of dino"),
        (["--metric", "dino=DINO"], "no reference images for dog, cat"),
        (["--metric", "dino=DINO", "--references", "nowhere"], "no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(trained, tmp_path, capsys, arguments, words):
    capsys.readouterr()
    (tmp_path / "bad.txt").write_text("a {}\n{0} and {1}\n", "utf-8")
    (tmp_path / "list.json").write_text('[{"name": "horse", "images": "."}]', "utf-8")
    places = {"DINO": trained / "dino", "CLIP": trained / "clip"}
    places |= {"BAD": tmp_path / "bad.txt", "LIST": tmp_path / "list.json"}
    for word, folder in places.items():
        arguments = [argument.replace(word, str(folder)) for argument in arguments]
    assert _evaluate(trained, tmp_path / "out", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
