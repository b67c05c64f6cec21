"""Images and captions, encoded: what counts as the same data."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from training_runs import train_command

from seqlora_core.bank import Bank
from seqlora_core.cli.main import main
from seqlora_core.cli.terminal import TerminalMonitor
from seqlora_core.data.encoding import cut_prompts, encode_concept
from seqlora_core.data.reference_folder import Reference
from seqlora_core.errors import Cancelled
from seqlora_core.model.base import Base, load_base
from seqlora_core.model.text_encoder import CLIPTextEncoder
from seqlora_core.monitor import Monitor

SIZE = (64, 80)


def picture(*pixels: tuple[int, int]) -> Image.Image:
    """A red one, with some pixels that are not."""
    image = Image.new("RGB", SIZE, "red")
    for pixel in pixels:
        image.putpixel(pixel, (254, 0, 0))
    return image


@pytest.fixture
def rounded_otherwise(monkeypatch):
    """Encoders of a machine with another number of threads, or another card."""
    encode_image, encode_all = Base.encode_image, CLIPTextEncoder.encode_all

    def image(base, pixels):
        mean, std = encode_image(base, pixels)
        return mean * (1 + 1e-6), std

    monkeypatch.setattr(Base, "encode_image", image)
    monkeypatch.setattr(CLIPTextEncoder, "encode_all", lambda *given: encode_all(*given) * (1 + 1e-6))


def test_a_stopped_training_resumes_where_encoding_rounds_otherwise_and_not_with_another_caption(
    base_folder, tmp_path, monkeypatch, capsys, request
):
    def interrupt(*_):
        raise KeyboardInterrupt

    images = tmp_path / "images"
    images.mkdir()
    picture().save(images / "0.png")
    command = train_command(base_folder, tmp_path / "bank", images, "dog", "--resume")
    with monkeypatch.context() as patched:
        patched.setattr(TerminalMonitor, "stepped", interrupt)
        assert main(command) == 130
    request.getfixturevalue("rounded_otherwise")
    (images / "0.txt").write_text("a sksdog dog on grass", "utf-8")
    assert main(command) == 2
    assert "its data" in capsys.readouterr().err
    (images / "0.txt").unlink()
    assert main(command) == 0
    assert Bank.open(tmp_path / "bank").concept("dog").metrics["steps"] == 3  # one of the word


@pytest.fixture
def fingerprints(base_folder):
    """(references, images of the class) ... -> what their data is told apart by; `change` is made to the base."""

    def of(*given, change=lambda pipeline: None) -> list[str]:
        base = load_base(str(base_folder))
        change(base.pipeline)
        return [encode_concept(base, images, 64, prior).fingerprint() for images, prior in given]

    return of


def test_pictures_captions_and_encoders_make_the_data_and_where_a_file_lies_does_not(fingerprints):
    one, other = (Reference(picture(*pixels), ("a dog",), "0.png") for pixels in ((), ((3, 4),)))
    data = [
        ([one], []),
        ([other], []),
        ([replace(one, image=one.image.transpose(Image.Transpose.ROTATE_90))], []),
        ([replace(one, prompts=("a cat",))], []),
        ([replace(one, prompts=("a dog", "a cat"))], []),
        ([one, other], []),
        ([other, one], []),
        ([one], [other]),
    ]
    known = fingerprints(*data)
    assert len(set(known)) == len(data)
    assert fingerprints(([replace(one, source="moved/0.png")], [])) == known[:1]
    for change in (
        lambda pipeline: pipeline.vae.encoder.conv_in.weight.add_(0.1),
        lambda pipeline: pipeline.text_encoder.get_input_embeddings().weight.add_(0.1),
    ):
        assert fingerprints(data[0], change=change) != known[:1]


def test_repeats_show_an_image_more_often_and_are_other_data(base_folder, fingerprints):
    one = Reference(picture(), ("a dog",), "0.png")
    thrice = replace(one, repeats=3)
    data = encode_concept(load_base(str(base_folder)), [thrice, one], 64)
    assert len(data.examples) == 4
    assert data.examples[0] is data.examples[2]  # encoded once
    once, more, again = fingerprints(([one], []), ([thrice], []), ([replace(one, repeats=1)], []))
    assert once == again != more


def test_copies_of_an_image_are_not_trained_on_where_one_is_held_out(base_folder):
    one, other = Reference(picture(), ("a dog",), "0.png"), Reference(picture((30, 40)), ("a dog",), "1.png")
    images = [one, replace(one, source="copy of 0.png"), other]
    for seed in range(4):
        data = encode_concept(load_base(str(base_folder)), images, 64, hold_out=1, seed=seed)
        [held_out] = data.held_out
        assert not any(torch.equal(held_out.mean, example.mean) for example in data.examples)


def test_prompts_are_encoded_in_batches_without_repeats_as_one_by_one(base_folder):
    base = load_base(str(base_folder))
    rows = []
    base.pipeline.text_encoder.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    prompts = [f"photo of a thing {number}" for number in range(20)]
    references = [Reference(picture(), (*prompts[:3], "a dog"), "0.png")] * 2
    data = encode_concept(base, references, 64, protected=[*prompts, "", "a dog", ""])
    assert sum(rows) == 22 and len(rows) == 2
    assert data.protected.shape[0] == 23 and data.examples[0].prompts.shape[0] == 4
    for embedding, prompt in zip(data.protected, [*prompts, "", "a dog", ""], strict=True):
        assert torch.allclose(embedding, base.encode_prompt(prompt), atol=1e-5)


def test_encoding_reports_how_far_it_is_and_stops_when_asked(base_folder):
    base = load_base(str(base_folder))
    monitor = Recorder(stop_at=21)
    prompts = [f"a dog {number}" for number in range(20)]
    references = [Reference(picture(), tuple(prompts), "0.png"), Reference(picture(), ("a dog 0",), "1.png")]
    with pytest.raises(Cancelled):
        encode_concept(base, references, 64, monitor=monitor)
    assert {text for text, *_ in monitor.stages} == {"encoding 2 images and 20 prompts"}
    assert [(done, total) for _, done, total in monitor.stages] == [(0, 22), (16, 22), (20, 22), (21, 22)]


class Recorder(Monitor):
    """Remembers the stages, and stops once so many parts are done."""

    def __init__(self, stop_at: int) -> None:
        self.stages, self.stop_at = [], stop_at

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        self.stages.append((text, done, total))

    def cancelled(self) -> bool:
        return self.stages[-1][1] >= self.stop_at


def test_prompts_that_the_base_cuts_are_reported(base_folder):
    base = load_base(str(base_folder))
    limit = base.pipeline.tokenizer.model_max_length
    assert cut_prompts(base, [Reference(picture(), ("a dog",), "0.png")]) == []
    (note,) = cut_prompts(base, [Reference(picture(), ("a dog", "dog " * limit), "0.png")])
    assert f"1 of 2 texts are longer than {limit} tokens" in note


def test_a_run_says_what_it_uses_of_a_folder_and_what_not(base_folder, tmp_path, caplog):
    images, prior = tmp_path / "images", tmp_path / "prior"
    for folder in (images, prior):
        folder.mkdir()
        picture().save(folder / "0.png")
    picture().save(images / "1.png")
    (images / "0.caption").write_text("a brown animal", "utf-8")
    (images / "2.heic").write_bytes(b"-")
    (prior / "3.gif").write_bytes(b"GIF89a")
    command = train_command(base_folder, tmp_path / "bank", images, "dog", "--prior-images", str(prior))
    with caplog.at_level("INFO", "seqlora"):
        assert main(command) == 0
    said = caplog.text
    stages = ("loading ", "encoding 3 images and", "protected prompts", "measuring the concept's own", "training\n")
    assert [said.count(stage) for stage in stages] == [1] * len(stages)
    assert sorted(stages, key=said.index) == list(stages)
    assert "2 images, 1 caption from files, 1 from templates" in said
    for expected in ("2.heic (HEIC)", "3.gif (GIF)", "have no caption: 1.png", "do not contain the token 'sksdog'"):
        assert expected in said
