"""The shipped mini base: it loads as any diffusers folder, and draws what it was taught."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from seqlora_core import mini
from seqlora_core.bank import Bank, BaseIdentity
from seqlora_core.cli.demo import run_demo
from seqlora_core.cli.main import main
from seqlora_core.data.images import to_tensor
from seqlora_core.errors import UserError
from seqlora_core.mini import mini_concepts
from seqlora_core.mini.identity import identity_similarity, load_identity
from seqlora_core.model.base import load_base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.monitor import Monitor

pytestmark = pytest.mark.skipif(not mini.BASE.is_dir(), reason="the mini base has not been made")

FIRST = BaseIdentity("mini", "c9ff81c6fee218926cef896d3ce0902f")  # the weights that were shipped before


@pytest.fixture(scope="module")
def base():
    return load_base("mini", "cpu")


@pytest.fixture(scope="module")
def learned_names():
    return json.loads((mini.FOLDER / "concepts.json").read_text("utf-8"))["learned"]


def test_the_base_is_a_diffusers_folder_of_at_most_18_mb(base):
    pipeline = StableDiffusionPipeline.from_pretrained(mini.BASE, safety_checker=None, local_files_only=True)
    assert torch.equal(pipeline.unet.conv_in.weight.float(), base.pipeline.unet.conv_in.weight)
    assert sum(file.stat().st_size for file in mini.FOLDER.rglob("*") if file.is_file()) <= 18e6


def test_a_bank_of_the_first_mini_base_is_refused_and_both_are_named(base, tmp_path):
    bank = Bank.open_or_create(tmp_path / "bank", FIRST, base.layers)
    with pytest.raises(UserError, match=r"base model mini \(.*not to mini 2 \("):
        bank.check_base(base.identity)


def test_the_text_encoder_has_the_names_that_every_version_of_transformers_reads(base):
    """transformers 4 starts from random weights, with a warning alone, where the prefix is absent."""
    from safetensors import safe_open

    with safe_open(mini.BASE / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


def test_what_the_base_draws_is_recognized(base, learned_names):
    network = load_identity()
    asked = range(0, len(learned_names), 16)
    hits = 0
    for index in asked:
        settings = SamplingSettings(20, 32, 4.0, seed=index)
        picture = generate(base, f"a photo of a {learned_names[index]}", settings=settings)
        similarities = network.similarities(network(to_tensor(picture)))[0, : len(learned_names)]
        hits += similarities.argmax().item() == index
    assert hits >= 0.6 * len(asked)


def test_the_autoencoder_keeps_what_a_concept_is_and_its_edges(base, learned_names):
    concepts = mini_concepts()
    shown = to_tensor([picture for concept in concepts for picture in concept.references])
    vae, network = base.pipeline.vae, load_identity()
    restored = vae.decode(vae.encode(shown).latent_dist.mean).sample
    found = network.similarities(network(restored))[:, len(learned_names) :].argmax(1)
    assert (found == torch.arange(len(concepts)).repeat_interleave(5)).float().mean() >= 0.96
    error = restored - shown
    assert error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean() < 0.15  # 0.163 with the first decoder


def test_32_concepts_of_rank_2_fit_into_every_layer_and_48_do_not(base):
    widths = [shape.width for shape in base.layers.values()]
    assert min(widths) >= 32 * 2
    assert min(widths) < 48 * 2


def test_there_are_48_concepts_with_five_pictures_and_a_class_that_the_base_knows(learned_names):
    known = {word for name in learned_names for word in name.split()} | {"fruit", "vehicle", "flower"}
    concepts = mini_concepts()
    assert len({concept.name for concept in concepts}) == 48
    assert not {concept.name for concept in concepts} & set(learned_names)
    assert all(concept.class_word in known for concept in concepts)
    assert {picture.size for concept in concepts for picture in concept.references} == {(32, 32)}
    assert {len(concept.references) for concept in concepts} == {5}


def test_the_identity_metric_tells_concepts_apart_that_look_alike():
    concepts = {concept.name: to_tensor(concept.references) for concept in mini_concepts()}
    for name, other in (("guide dog", "service dog"), ("taxi", "police car"), ("orange", "peach")):
        same = identity_similarity(concepts[name][:2], concepts[name][2:]).min()
        assert same > identity_similarity(concepts[other], concepts[name]).max()


def test_the_demo_writes_its_pictures_and_an_honest_report(tmp_path):
    settings = {"rank": 2, "steps": 3, "batch_size": 1}
    report = run_demo(tmp_path / "demo", 2, seed=1, monitor=Monitor(), settings=settings)
    assert report == json.loads((tmp_path / "demo" / "report.json").read_text("utf-8"))
    assert len(report["concepts"]) == 2
    assert report["max_overlap"] <= 1e-5
    last = report["concepts"][-1]
    assert last["identity"]["after_all"] == last["identity"]["after_training"]  # nothing was learned after it
    assert all(-1 <= value <= 1 for concept in report["concepts"] for value in concept["identity"].values())
    assert (tmp_path / "demo" / "grid.png").is_file()
    assert (tmp_path / "demo" / "losses.png").is_file()


@pytest.mark.parametrize(("arguments", "words"), [(["--concepts", "49"], "1 to 48"), ([], "another folder")])
def test_mistakes_cost_no_time(tmp_path, capsys, arguments, words):
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "bank.json").write_text("{}", "utf-8")
    assert main(["demo", "--out", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
