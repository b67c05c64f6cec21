"""The page reads and edits the text of Compose Concepts as the core reads it (web/js/selection.js, in a browser)."""

import base64
import json
import math
import random
from pathlib import Path

import pytest
from browser import Browser, chromium

from seqlora_core.composition.selection import parse_selections
from seqlora_core.errors import UserError

NAMES = ["dog", "my cat", "8", "Élan", "owl-2", "dog 2"]
PIECES = [
    "dog",
    "my cat",
    "8",
    "élan",
    "owl-2",
    "dog 2",
    "nobody",
    ":1",
    ":0.8",
    ":0,8",
    ":-.5",
    ":x",
    ":1e-1",
    " 1",
    " 0.5",
]
PIECES += [",", ", ", "\n", ",,", " ", "<lora:dog:0.7>", "<LORA: my cat :1>", ": ", "dog:1, my cat:0.5"]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Calls JavaScript with the module's functions; the arguments and the result are JSON."""
    if chromium() is None:
        pytest.skip("no Chromium: install one, or name it in CHROMIUM")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    source = (Path(__file__).parents[2] / "web" / "js" / "selection.js").read_bytes()
    address = f"data:text/javascript;base64,{base64.b64encode(source).decode()}"

    def call(function: str, *values: object):
        given = ", ".join(map(json.dumps, values))
        return browser.evaluate(f"import({address!r}).then(({{ parse, ...m }}) => ({function})({given}))")

    yield lambda function, *values: call(function, *values)
    browser.close()


def core(text: str) -> list[list] | None:
    """(name, strength) of every entry; None for a text that the core refuses."""
    try:
        return [list(entry) for entry in parse_selections(text, NAMES)]
    except UserError:
        return None


def entries(script, texts: list[str]) -> list[list[list]]:
    parse = "(texts, names) => texts.map(text => parse(text, names).map(e => [e.name, e.strength]))"
    return script(parse, texts, NAMES)


def test_the_page_reads_a_selection_as_the_core_does(script):
    generator = random.Random(0)
    texts = ["".join(generator.choices(PIECES, k=generator.randint(0, 7))) for _ in range(2000)]
    read = dict(zip(texts, entries(script, texts), strict=True))
    assert sum(core(text) is not None for text in texts) > 1000
    for text, found in read.items():
        if (expected := core(text)) is None:
            assert any(strength is None or math.isnan(strength) for _, strength in found), text
        else:
            assert found == expected, text


def test_edits_of_one_entry_leave_the_others_and_their_writing(script):
    text = "dog,  my cat:0,80\n<lora:owl-2:.5>,\n 8"
    edit = "(text, names, how, ...values) => m[how](text, parse(text, names), ...values)"
    assert script(edit, text, NAMES, "setStrength", 0, 0.25) == "dog:0.25,  my cat:0,80\n<lora:owl-2:.5>,\n 8"
    assert script(edit, text, NAMES, "setStrength", 2, -1) == "dog,  my cat:0,80\nowl-2:-1,\n 8"
    assert script(edit, text, NAMES, "remove", 1) == "dog\n<lora:owl-2:.5>,\n 8"
    assert script(edit, text, NAMES, "remove", 0) == "my cat:0,80\n<lora:owl-2:.5>,\n 8"
    assert script(edit, text, NAMES, "append", "Élan", 1) == "dog,  my cat:0,80\n<lora:owl-2:.5>,\n 8,\n Élan:1"
    assert script(edit, text, NAMES, "move", 3, 0) == "8,  dog\nmy cat:0,80,\n <lora:owl-2:.5>"


def test_an_edit_of_any_text_selects_what_was_meant(script):
    generator = random.Random(1)
    texts = ["".join(generator.choices(PIECES, k=generator.randint(1, 7))) for _ in range(1000)]
    texts = [text for text in texts if core(text)]
    edits = """(texts, names) => texts.map(text => {
        const own = parse(text, names), last = own.length - 1;
        return [m.setStrength(text, own, last, 0.3), m.remove(text, own, 0),
                m.append(text, own, "owl-2", 2), m.move(text, own, last, 0)] })"""
    for text, (stronger, fewer, more, moved) in zip(texts, script(edits, texts, NAMES), strict=True):
        before = core(text)
        assert core(stronger) == [*before[:-1], [before[-1][0], 0.3]], text
        assert core(fewer) == before[1:], text
        assert core(more) == [*before, ["owl-2", 2.0]], text
        assert core(moved) == [before[-1], *before[:-1]], text
