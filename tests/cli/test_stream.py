"""`train --stream`: a whole list, what stops it, how it goes on, and the mistakes of entries."""

import json
import sys
from pathlib import Path

import pytest
import tiny_base
from PIL import Image
from training_runs import SMALL

from seqlora_core.bank import Bank
from seqlora_core.cli import request
from seqlora_core.cli.main import main
from seqlora_core.data.stream import read_stream
from seqlora_core.errors import Cancelled

SHARED = Path(__file__).parents[3] / "shared" / "data" / "customconcept101"


def entry(name: str, **more) -> dict:
    return {"name": name, "images": f"photos/{name}", "class_word": "thing", **more}


@pytest.fixture
def listing(tmp_path):
    """Writes a list with a folder of one image for each of its entries; returns its file."""

    def write(entries, file="list.json") -> Path:
        for index, values in enumerate(entries):
            folder = tmp_path / str(values.get("images", values.get("instance_data_dir", "photos")))
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (40 * index, 90, 60)).save(folder / "0.png")
        path = tmp_path / file
        path.write_text(json.dumps(entries), "utf-8")
        return path

    return write


@pytest.fixture
def learn(base_folder, tmp_path):
    """Runs `train --stream` on a bank of its own; returns the exit status."""

    def run(path, *more) -> int:
        where = ["--base", str(base_folder), "--bank", str(tmp_path / "bank"), "--stream", str(path)]
        return main(["train", *where, *SMALL, *map(str, more)])

    return run


def concepts(tmp_path) -> list:
    return Bank.open(tmp_path / "bank").concepts


def test_a_list_is_learned_in_order_with_each_entrys_own_settings(listing, learn, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    own = {"token": "ohmydog", "rank": 1, "flip": False, "lr-basis": 0.01}
    path = listing([entry("dog", **own), entry("cat"), entry("bag", flip=True, token_vectors=0)])
    assert learn(path, "--flip") == 0
    dog, cat, bag = concepts(tmp_path)
    assert [concept.name for concept in (dog, cat, bag)] == ["dog", "cat", "bag"]
    assert (dog.token, dog.rank, dog.settings["flip"], dog.settings["lr_basis"]) == ("ohmydog", 1, False, 0.01)
    assert (cat.token, cat.rank, cat.settings["flip"]) == ("skscat", 2, True)
    assert bag.settings["token_vectors"] == 0 and not bag.embedding
    for number, name in enumerate(("dog", "cat", "bag"), start=1):
        assert f"Concept {number} of 3: {name}" in caplog.messages
    assert "3 of 3 concepts are in" in capsys.readouterr().out


def test_a_stopped_list_goes_on_at_its_concept_and_trains_nothing_twice(
    listing, learn, tmp_path, capsys, caplog, monkeypatch
):
    caplog.set_level("INFO")
    path = listing([entry("dog"), entry("cat"), entry("bag")])
    original, stopping = request.train_concept, True

    def stopped_in_the_second(denoiser, encode, bank, spec, config, monitor, *rest):
        if spec.name == "cat" and stopping:
            stepped = monitor.stepped

            def stop(report) -> None:
                stepped(report)
                if report.step == 2:
                    raise Cancelled

            monkeypatch.setattr(monitor, "stepped", stop, raising=False)
        return original(denoiser, encode, bank, spec, config, monitor, *rest)

    monkeypatch.setattr(request, "train_concept", stopped_in_the_second)
    assert learn(path, "--steps", 4) == 130
    assert "Stopped in entry 2 (cat) at step 2 of" in (message := capsys.readouterr().err)
    assert message.strip().endswith("the same command continues.")
    [first] = concepts(tmp_path)
    stopping = False
    assert learn(path, "--steps", 4) == 0
    assert "Resuming at step 2 of" in caplog.text
    assert [concept.name for concept in concepts(tmp_path)] == ["dog", "cat", "bag"]
    assert concepts(tmp_path)[0] == first
    manifest = (tmp_path / "bank" / "bank.json").read_bytes()
    assert learn(path, "--steps", 4) == 0
    assert (tmp_path / "bank" / "bank.json").read_bytes() == manifest
    assert "3 of 3 concepts are in the bank already." in caplog.messages


@pytest.mark.parametrize(
    ("policy", "status", "ranks"), [("error", 2, [2]), ("skip", 0, [2, 2]), ("replace", 0, [3, 2])]
)
def test_another_concept_of_that_name_follows_the_policy(listing, learn, tmp_path, capsys, policy, status, ranks):
    assert learn(listing([entry("dog")])) == 0
    path = listing([entry("dog", rank=3), entry("cat")])
    assert learn(path, "--on-existing", policy) == status
    assert [concept.rank for concept in concepts(tmp_path)] == ranks
    assert status == 0 or "Entry 1 (dog): The bank already has" in capsys.readouterr().err


def test_the_published_list_of_customconcept101_is_a_stream(listing, learn, tmp_path, caplog):
    caplog.set_level("INFO")
    if not SHARED.is_dir():
        pytest.skip(f"the shared list is not at {SHARED}")
    published = json.loads((SHARED / "dataset.json").read_text("utf-8"))
    assert learn(listing(published), "--first", 2) == 0
    assert [(c.name, c.class_word) for c in concepts(tmp_path)] == [
        ("scene_barn", "barn"),
        ("actionfigure_1", "action figure"),
    ]
    assert "instance_prompt and class_data_dir of" in caplog.text


def test_yaml_is_read_where_its_package_is_installed(listing, learn, tmp_path, capsys, monkeypatch):
    pytest.importorskip("yaml")
    listing([entry("dog")])
    path = tmp_path / "list.yaml"
    path.write_text("- name: dog\n  images: photos/dog\n  class-word: dog\n", "utf-8")
    assert learn(path) == 0
    assert [concept.name for concept in concepts(tmp_path)] == ["dog"]
    capsys.readouterr()
    path.write_text("- name: [dog\n", "utf-8")
    assert learn(path) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    path.write_text("- name: dog\n  name: cat\n  images: photos/dog\n  class-word: dog\n", "utf-8")
    assert learn(path) == 2
    assert "'name' stands twice in an entry" in capsys.readouterr().err
    path.write_text("- name: dog\n  images: photos/dog\n  rank: !!int x\n", "utf-8")
    assert learn(path) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert learn(path) == 2
    assert "python -m pip install pyyaml, or write it as JSON" in capsys.readouterr().err


def test_yaml_leaves_names_and_numbers_as_they_are_written(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "list.yaml"
    values = {"name": "010", "token": "12:30", "images": "2024-13-45", "class_word": "1_000", "lr_basis": "1.0e-3"}
    path.write_text("\n".join(f"{'-' if key == 'name' else ' '} {key}: {values[key]}" for key in values), "utf-8")
    assert read_stream(path)[0].values == {**values, "images": str(tmp_path / "2024-13-45")}


def test_yaml_entries_may_share_settings_and_change_some(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- &a {name: a, images: a, class_word: dog, rank: 3}\n- {<<: *a, name: b, images: b}\n", "utf-8")
    assert [(entry.name, entry.values["rank"]) for entry in read_stream(path)] == [("a", "3"), ("b", "3")]


MISTAKES = {
    "no images": ([entry("dog"), {**entry("cat"), "images": "empty"}], "Entry 2 (cat): There are no images"),
    "no folder": ([entry("dog"), {**entry("cat"), "images": "none"}], "Entry 2 (cat): There is no folder"),
    "damaged image": ([entry("dog"), {**entry("cat"), "images": "broken"}], "Entry 2 (cat): "),
    "no name": ([entry("dog"), {"images": "photos/dog"}], "Entry 2 of"),
    "no class word": ([entry("dog"), {"name": "cat", "images": "photos/dog"}], "Entry 2 (cat): It has no class_word"),
    "name twice": ([entry("dog"), entry("Dog", token="other")], "Entry 2 (Dog): Entry 1 has the name 'dog', too"),
    "token twice": ([entry("my dog"), entry("my-dog")], "Entry 2 (my-dog): Entry 1 has the token 'sksmydog', too"),
    "token is the class": ([entry("dog", token="thing")], "Entry 1 (dog): The token and the class word are both"),
    "name with a path": ([entry("dog"), entry("a:b", images="photos/dog")], "Entry 2 (a:b): The concept's name"),
    "unknown setting": ([entry("dog", ranks=3)], "Entry 1 (dog): There is no setting 'ranks' of a concept: did you"),
    "setting of the list": ([entry("dog", dtype="bfloat16")], "Entry 1 (dog): dtype is the same for the whole list"),
    "value of another kind": ([entry("dog", rank=[3])], "Entry 1 (dog): rank must be a number or a text"),
    "value out of range": ([entry("dog"), entry("cat", rank=0)], "Entry 2 (cat): rank must be at least 1"),
    "value that is no number": ([entry("dog", steps="many")], "Entry 1 (dog): argument --steps"),
    "switch that is no switch": ([entry("dog", flip="yes")], "Entry 1 (dog): flip is true or false"),
    "size that does not fit": ([entry("dog", resolution=72)], "Entry 1 (dog): "),
    "setting twice": ([entry("dog", **{"class-word": "cat"})], "Entry 1 of"),
    "setting under both names": ([entry("dog", alpha=0.1, lr_coefficients=0.2)], "Entry 1 (dog): alpha is the former"),
    "folder without a name": ([entry("dog", prior_images="")], "has no prior_images"),
    "name that is no text": ([entry("dog"), {**entry("cat"), "name": False}], "The name of entry 2 of"),
    "number beyond all bounds": ([entry("dog", rank=10**400)], "Entry 1 (dog): rank must be a number of fewer than"),
    "no entries": ([], "is empty or no list"),
    "entry without names": (["dog"], "Entry 1 of"),
}


def test_a_list_in_another_encoding_is_refused_as_such(learn, tmp_path, capsys):
    (path := tmp_path / "list.yaml").write_bytes("- name: K\xe4fer".encode("latin-1"))
    assert learn(path) == 2
    assert "save it as UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_entry_before_anything_is_trained(listing, learn, tmp_path, capsys, mistake):
    entries, message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG rubbish")
    listing([entry("dog"), entry("cat"), entry("Dog"), entry("my dog"), entry("my-dog")])
    (path := tmp_path / "list.json").write_text(json.dumps(entries), "utf-8")
    assert learn(path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "There is no list"),
        ("{", [], "is not valid JSON"),
        ('[{"name": "a", "name": "b"}]', [], "'name' stands twice"),
        ('[{"name": "a", "images": "."}]', ["--first", "2"], "has 1 concept, not 2"),
        ("[]", ["--name", "dog"], "--name is for one concept"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(learn, tmp_path, capsys, content, arguments, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content, "utf-8")
    assert learn(path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_one_concept_needs_its_name_images_and_class_word(base_folder, tmp_path, capsys):
    assert main(["train", "--base", str(base_folder), "--bank", str(tmp_path / "bank"), "--name", "dog"]) == 2
    assert "required: --images, --class-word, or --stream" in capsys.readouterr().err


def test_an_entry_of_another_base_is_refused_before_its_images_are_read(listing, learn, tmp_path, capsys):
    path = listing([entry("dog")])
    assert learn(path) == 0
    other = tiny_base.save_folder(tmp_path / "other-sd", seed=9)
    command = ["train", "--base", str(other), "--bank", str(tmp_path / "bank"), "--stream", str(path)]
    assert main([*command, *SMALL]) == 2
    assert "small-sd" in capsys.readouterr().err


def test_a_mistake_in_a_later_list_is_found_before_the_first_is_learned(listing, base_folder, tmp_path, capsys):
    first, second = listing([entry("dog")], "first.json"), listing([entry("cat", images="photos")], "second.json")
    (tmp_path / "photos" / "0.png").write_bytes(b"\x89PNG rubbish")
    pairs = [f"--stream={first}", f"--bank={tmp_path / 'one'}", f"--stream={second}", f"--bank={tmp_path / 'two'}"]
    assert main(["train", "--base", str(base_folder), *pairs, *SMALL]) == 2
    assert "Entry 1 (cat): " in capsys.readouterr().err and not (tmp_path / "one").exists()


def test_a_transparent_image_of_a_later_entry_is_found_before_training(listing, learn, tmp_path, capsys):
    path = listing([entry("dog"), entry("cat", alpha_masks=True)])
    Image.new("RGBA", (64, 64)).save(tmp_path / "photos" / "cat" / "0.png")
    assert learn(path) == 2
    assert "is fully transparent" in capsys.readouterr().err and not (tmp_path / "bank").exists()


def _as_process(monkeypatch, rank: int, count: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_learns_a_list_of_its_own(base_folder, tmp_path, capsys, monkeypatch, rank):
    _as_process(monkeypatch, rank, 2)
    lists = [f"--{option}={tmp_path / name}" for name in ("one", "two") for option in ("stream", "bank")]
    assert main(["train", "--base", str(base_folder), "--device", "cpu", *lists]) == 2
    assert f"There is no list {tmp_path / ('one', 'two')[rank]}" in capsys.readouterr().err  # none is there


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, ["--stream=a", "--stream=b", "--bank=x"], "one --bank for each --stream, all different"),
        (1, ["--stream=a", "--stream=b", "--bank=x", "--bank=x"], "one --bank for each --stream, all different"),
        (1, ["--stream=a", "--stream=b", "--bank=x", "--bank=./x/"], "one --bank for each --stream, all different"),
        (1, ["--stream=a", "--bank=x", "--bank=y"], "one --bank for each --stream, all different"),
        (3, ["--stream=a", "--stream=b", "--bank=x", "--bank=y"], "start as many as there are lists"),
    ],
)
def test_lists_banks_and_processes_must_be_equally_many(base_folder, capsys, monkeypatch, count, options, message):
    _as_process(monkeypatch, 0, count)
    assert main(["train", "--base", str(base_folder), "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err
