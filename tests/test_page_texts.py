"""The texts of the page: every language has all of them, and the scripts use no other."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "web" / "js").glob("*.js")))


def texts(language: str) -> dict[str, str]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["seqlora"]


@pytest.mark.parametrize("language", sorted(path.name for path in (ROOT / "locales").iterdir()))
def test_a_language_has_every_text_with_its_values(language):
    english, own = texts("en"), texts(language)
    assert own.keys() == english.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", own[key])) == sorted(re.findall(r"\{\w+\}", text)), key


def test_the_scripts_use_texts_that_exist():
    groups = {key.partition(".")[0] for key in texts("en")}
    used = set(re.findall(rf'"((?:{"|".join(groups)})\.[a-z.]+)"', SCRIPTS))
    assert len(used) > 40
    assert used <= texts("en").keys()
    buttons = set(re.findall(r'button\("([a-z.]+)"', SCRIPTS))
    assert {f"{key}.tip" for key in buttons} <= texts("en").keys()


@pytest.mark.parametrize("file", sorted((ROOT / "locales").glob("*/nodeDefs.json")), ids=lambda path: path.parent.name)
def test_the_texts_of_nodes_are_no_syntax_of_the_host_s_translations(file):
    """Braces, @ and | have a meaning in them."""
    values = json.loads(file.read_text("utf-8"), object_hook=lambda found: [*found.values()])
    assert not re.search(r"[{}@|]", json.dumps(values, ensure_ascii=False))
