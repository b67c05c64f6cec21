"""Composing concepts into one file, and generating images with them."""

import pytest
from PIL import Image
from safetensors.torch import load_file

from seqlora_core.cli.main import main
from seqlora_core.composition.fusion import FUSIONS, WITHOUT_BASE


def test_strength_zero_generates_what_the_plain_base_does(base_folder, bank, tmp_path):
    pictures = []
    for index, concept in enumerate(([], ["--bank", str(bank), "--concept", "dog:0"])):
        out = tmp_path / f"{index}.png"
        command = ["generate", "--base", str(base_folder), *concept, "--prompt", "a dog", "--out", str(out)]
        assert main([*command, "--steps", "2", "--size", "64", "--seed", "3"]) == 0
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_writes_a_file_that_generate_draws_with(base_folder, two_concepts, tmp_path, capsys, fusion):
    composed, picture = tmp_path / "x.safetensors", tmp_path / "x.png"
    base = [] if fusion in WITHOUT_BASE else ["--base", str(base_folder), "--sampling-steps", "2"]
    command = ["compose", "--bank", str(two_concepts), "--concept", "dog", "--concept", "cat:0.5", *base]
    assert main([*command, "--fusion", fusion, "--out", str(composed)]) == 0
    rank = 128 if fusion in ("loraclr", "ties") else 4
    assert f"2 concepts, rank {rank}, by {fusion} in" in capsys.readouterr().out
    command = ["generate", "--base", str(base_folder), "--lora", str(composed), "--prompt", "a dog", "--steps", "1"]
    assert main([*command, "--size", "64", "--out", str(picture)]) == 0
    assert Image.open(picture).size == (64, 64)


def test_a_composed_file_acts_as_the_concepts_it_was_made_of(base_folder, two_concepts, tmp_path):
    composed = tmp_path / "sum.safetensors"
    concepts = ["--bank", str(two_concepts), "--concept", "dog:3", "--concept", "cat:-2"]
    assert main(["compose", *concepts, "--out", str(composed)]) == 0
    pictures = []
    for index, chosen in enumerate((concepts, ["--lora", str(composed)], [])):
        out = tmp_path / f"{index}.png"
        command = ["generate", "--base", str(base_folder), *chosen, "--prompt", "a dog", "--steps", "2", "--size", "64"]
        assert main([*command, "--out", str(out)]) == 0
        pictures.append(Image.open(out).tobytes())
    differences = [max(abs(a - b) for a, b in zip(pictures[0], other, strict=True)) for other in pictures[1:]]
    assert differences[0] <= 1 < differences[1]


def test_generate_confines_concepts_and_says_what_it_cannot_confine(base_folder, two_concepts, tmp_path, capsys):
    command = ["generate", "--base", str(base_folder), "--bank", str(two_concepts), "--steps", "2", "--size", "64"]
    command += ["--concept", "dog:3", "--concept", "cat:3", "--prompt", "a sksdog"]
    region = ["--region", "0,0,0.5,1.5=a skscat", "--region-strength", "1", "--feather", "0.1"]
    pictures, printed = [], []
    for index, options in enumerate(([], ["--own-words"], region)):
        out = tmp_path / f"{index}.png"
        assert main([*command, *options, "--out", str(out)]) == 0
        pictures.append(Image.open(out).tobytes())
        printed.append(capsys.readouterr().out)
    assert len(set(pictures)) == 3
    assert "No prompt names 'skscat' in its first 77 tokens: the concept 'cat' does nothing." in printed[1]
    assert "act everywhere, not on their word alone: 32 layers of 'dog'." in printed[1]
    assert "is cut to 0,0,0.5,1." in printed[2] and "does nothing" not in printed[2]


def test_a_regions_concept_may_be_written_in_another_case(base_folder, two_concepts, tmp_path):
    command = ["generate", "--base", str(base_folder), "--bank", str(two_concepts), "--concept", "DOG"]
    command += ["--prompt", "a sksdog", "--region", "0,0,0.5,1=[Dog]", "--steps", "1", "--size", "64"]
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 0


def test_a_bundle_draws_what_the_bank_does_with_the_concepts_words(base_folder, two_concepts, tmp_path, capsys):
    bundle, words = tmp_path / "sum.safetensors", tmp_path / "words"
    concepts = ["--bank", str(two_concepts), "--concept", "dog", "--concept", "cat"]
    assert main(["compose", *concepts, "--out", str(bundle), "--embeddings", str(words), "--bundle"]) == 0
    assert sorted(path.name for path in words.iterdir()) == ["skscat.safetensors", "sksdog.safetensors"]
    assert load_file(words / "sksdog.safetensors").keys() == {"sksdog"}
    pictures = []
    for index, chosen in enumerate((concepts, ["--lora", str(bundle)], concepts[:4])):
        out, prompt = tmp_path / f"{index}.png", "a (sksdog:1.3) and a skscat"
        command = ["generate", "--base", str(base_folder), *chosen, "--prompt", prompt, "--steps", "2", "--size", "64"]
        assert main([*command, "--out", str(out)]) == 0
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1] != pictures[2]
    told = capsys.readouterr().out
    assert told.count("The prompt names 'skscat', whose concept 'cat' is not selected: only its word acts.") == 1


COMPOSE_MISTAKES = {
    "strength that is no number": (["--concept", "dog:high"], "not a number"),
    "strength beyond float32": (["--concept", "dog:1e39"], "too large"),
    "unknown concept": (["--concept", "cat"], "no concept 'cat'"),
    "not a safetensors output": (["--concept", "dog", "--out", "x.ckpt"], "safetensors"),
    "output that is a folder": (["--concept", "dog", "--out", "{empty}.safetensors"], "it is a folder"),
    "fusion without a base": (["--concept", "dog", "--fusion", "loraclr"], "needs the activations of the base model"),
    "words into the bank": (["--concept", "dog", "--embeddings", "{bank}/embeddings"], "lies in the bank"),
    "unknown fusion": (["--concept", "dog", "--fusion", "magic"], "invalid choice"),
}
GENERATE_MISTAKES = {
    "no such LoRA": (["--concept", "dog", "--lora", "{empty}/x.safetensors"], "cannot be read"),
    "unknown concept": (["--concept", "cat"], "no concept 'cat'"),
    "seed too large": (["--seed", str(2**64)], "--seed"),
    "more steps than the schedule": (["--steps", "1001", "--size", "64"], "at most 1000 steps"),
    "size beyond all bounds": (["--size", str(10**30)], "must be at most 16384 pixels"),
    "region's concept twice": (["--concept", "dog", "--region", "0,0,1,1=[dog, DOG:0.5]"], "'dog' twice"),
    "guidance that is no number": (["--concept", "dog", "--guidance", "nan"], "--guidance: must be a finite number"),
    "not a PNG output": (["--concept", "dog", "--out", "x.jpg"], ".png file"),
    "own words of nothing": (["--own-words"], "give --concept too"),
    "no region for its setting": (["--region-strength", "0.5"], "--region-strength is a setting of regions"),
    "region without a box": (["--region", "a sksdog"], "is not LEFT,TOP,RIGHT,BOTTOM=PROMPT"),
    "share above 1": (["--region", "0,0,1,1=x", "--region-start", "2"], "must be between 0 and 1"),
    "word that is not loaded": (["--region", "0,0,1,1=a sksdog"], "whose concept 'dog' is not selected"),
}


@pytest.mark.parametrize("mistake", COMPOSE_MISTAKES)
def test_a_mistake_in_compose_gets_one_line_and_writes_nothing(bank, tmp_path, refuse, mistake):
    arguments, message = COMPOSE_MISTAKES[mistake]
    refuse(["compose", "--bank", bank, "--out", tmp_path / "x.safetensors", *arguments], message)


@pytest.mark.parametrize("mistake", GENERATE_MISTAKES)
def test_a_mistake_in_generate_gets_one_line_and_writes_nothing(base_folder, bank, tmp_path, refuse, mistake):
    arguments, message = GENERATE_MISTAKES[mistake]
    command = ["generate", "--base", base_folder, "--bank", bank, "--prompt", "x", "--out", tmp_path / "x.png"]
    refuse([*command, *arguments], message)
