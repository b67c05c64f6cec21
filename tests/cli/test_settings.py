"""The options of a training run's settings: old forms, values that are refused, and the help."""

from dataclasses import fields

import pytest
from training_runs import train_command

from seqlora_core.cli.main import main, make_parser
from seqlora_core.cli.settings import requested_config
from seqlora_core.training.config import OLD_NAMES, ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import METHODS, resolve

TITLES = ("what to train:", "basics:", "speed and memory:", "method (defaults are fine):")


def settings(*arguments: str) -> ResolvedConfig:
    """What the options of `train` resolve to on a base of 512 pixels."""
    args = make_parser().parse_args([*train_command("base", "bank", "images", "dog"), *arguments])
    return resolve(requested_config(vars(args)), native_size=512, dtype="bfloat16")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--alpha", "0.01"], ["--lr-coefficients", "0.01"]),
        (["--beta", "0.02"], ["--lr-basis", "0.02"]),
        (["--crosstalk", "0.3"], ["--interference-penalty", "0.3"]),
        (["--draw", "independent"], ["--column-sampling", "independent"]),
        (["--train-on", "subsets"], ["--train-on", "alternate"]),
        (["--lower-step", "kept"], ["--lower-step", "reuse"]),
        (["--lower-step", "again"], ["--lower-step", "repeat"]),
        (["--train-on", "auto"], []),
        (["--lower-step", "auto"], []),
        (["--init", "auto"], []),
        (["--coordinates", "auto"], []),
        (["--dtype", "auto"], []),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("method", ["seqlora", "lora"])
def test_an_old_form_gives_the_settings_of_the_new_one(old, new, method):
    assert settings("--method", method, *old) == settings("--method", method, *new)
    if new:
        assert settings("--method", method, *new) != settings("--method", method, *_opposite(new))


def _opposite(new: list[str]) -> list[str]:
    """Other settings, without which the comparison above would say nothing."""
    others = {"independent": "without-replacement", "alternate": "accumulated", "reuse": "repeat", "repeat": "reuse"}
    return [new[0], others.get(new[1], "0.5")]


@pytest.mark.parametrize("flag", ["--alpha", "--lr-coefficients", "--beta", "--lr-basis"])
def test_a_lora_s_alpha_is_refused_before_the_base_is_loaded(tmp_path, pictures, monkeypatch, capsys, flag):
    monkeypatch.setattr("seqlora_core.cli.options.load_base", lambda *_: pytest.fail("the base was loaded"))
    assert main([*train_command("mini", tmp_path / "bank", pictures, "dog"), flag, "16"]) == 2
    line = capsys.readouterr().err
    assert "is a learning rate, not the alpha of a LoRA" in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39"])
def test_every_setting_that_is_a_number_is_finite(tmp_path, pictures, capsys, value):
    numbers = [entry for entry in fields(TrainingConfig) if "float" in str(entry.type)]
    for entry in numbers:
        flag = f"--{entry.name.replace('_', '-')}"
        assert main([*train_command("mini", tmp_path / "bank", pictures, "dog"), f"{flag}={value}"]) == 2
        assert f"{flag}: must be a finite number" in capsys.readouterr().err
    assert len(numbers) >= 7


def test_the_help_explains_every_setting_under_its_current_name(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = capsys.readouterr().out
    positions = [text.index(f"\n{title}\n") for title in TITLES]
    assert positions == sorted(positions)
    words = text.split()
    for entry in fields(TrainingConfig):
        assert words.count(f"--{entry.name.replace('_', '-')}") == 1, entry.name
        assert " ".join(entry.metadata["help"].split()) in " ".join(words)
    assert not [name for name in OLD_NAMES if f"--{name}" in words]
    assert positions[1] < text.index("--rank") < positions[2] < text.index("--dtype") < positions[3]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_the_defaults_in_the_help_are_those_of_the_method(method):
    help_texts = {entry.name: entry.metadata["unset"] for entry in fields(TrainingConfig)}
    for name, default in method.defaults.items():
        assert _stated(help_texts[name], method.name) == (f"{default:g}" if isinstance(default, float) else default)


def _stated(text: str, method: str) -> str:
    """A method's default in a text such as "1 for seqlora and lora, else 2"."""
    for clause in text.split(", "):
        value, _, names = clause.removeprefix("else ").partition(" for ")
        if not names or method in names.split(" and "):
            return value
    raise AssertionError(f"no default for {method} in {text!r}")
