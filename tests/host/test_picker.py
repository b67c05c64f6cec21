"""Concepts are picked from pictures in the page, with mouse and keyboard; the text widget carries the value."""

import pytest
from banks import make_bank
from browser import GRAPH, draw_nodes_as_elements, own_errors

pytestmark = pytest.mark.slow

TEXT = f"{GRAPH}[1].widgets.find(widget => widget.name === 'concepts')"
CHECK, STRENGTH, GRIP = (".seqlora-row input[type=checkbox]", ".seqlora-strength", ".seqlora-grip")


def build(page, *types: str) -> None:
    """A graph of a Basis Bank Loader, and of nodes that take its bank."""
    page.evaluate("document.querySelectorAll('.p-dialog-close-button').forEach(button => button.click())")
    page.evaluate(
        f"{{ [...{GRAPH}].forEach(node => app.graph.remove(node));"
        f"const [loader, ...takers] = {list(types)}.map(type => LiteGraph.createNode(type));"
        "app.graph.add(loader); loader.widgets[0].value = 'picked'; loader.pos = [60, 120];"
        "takers.forEach((node, i) => { app.graph.add(node); node.pos = [440 + 380 * i, 120];"
        " loader.connect(0, node, node.inputs.findIndex(input => input.name === 'bank')) }) }"
    )


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def picker(page, host, request):
    """The page with a list of four concepts on Compose Concepts."""
    make_bank(host, "picked", 4)
    page.errors.clear()
    draw_nodes_as_elements(page, request.param)
    build(page, "SeqLoRABankLoader", "SeqLoRAComposeConcepts")
    page.wait_for(f"document.querySelectorAll('{CHECK}').length === 4")
    yield page
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    assert own_errors(page, host) == []


def text_is(page, text: str) -> None:
    page.wait_for(f"{TEXT}.value === {text!r}")
    page.wait_for("document.querySelector('.seqlora-list')")


def test_the_mouse_picks_weighs_and_orders_concepts(picker):
    picker.wait_for("[...document.querySelectorAll('.seqlora-thumbnail')].every(image => image.naturalWidth)")
    assert picker.evaluate(f"{TEXT}.value") == ""
    picker.drag(CHECK, 3)
    text_is(picker, "subject 0:1, subject 1:1, subject 2:1")
    picker.drag(STRENGTH, 0, right=-20)
    text_is(picker, "subject 0:0.5, subject 1:1, subject 2:1")
    picker.drag(GRIP, 0, down=36)
    text_is(picker, "subject 1:1, subject 0:0.5, subject 2:1")
    picker.drag(CHECK, 3)
    text_is(picker, "subject 1:1, subject 0:0.5, subject 2:1, subject 3:1")
    picker.click("button", "None")
    text_is(picker, "subject 1:0")
    picker.click("button", "All")
    text_is(picker, "subject 1:1, subject 0:0.5, subject 2:1, subject 3:1")


def test_the_keyboard_reaches_everything(picker):
    """Tab goes through a row from its switch to its grip; the focus stays on what was used."""
    picker.evaluate(f"document.querySelector('{CHECK}').focus()")
    picker.key("Tab")
    picker.wait_for("document.querySelector('.seqlora-card')?.textContent.includes('sks0')")
    picker.key("Tab")
    picker.key("ArrowUp")
    picker.key("ArrowUp", shift=True)
    text_is(picker, "subject 0:1.11, subject 1:1, subject 2:1, subject 3:1")
    picker.key("Tab")
    picker.key("ArrowDown")
    text_is(picker, "subject 1:1, subject 0:1.11, subject 2:1, subject 3:1")
    picker.wait_for("document.activeElement.dataset.key === 'move subject 0'")
    names = "document.querySelectorAll('.seqlora-picker input, .seqlora-picker button')"
    assert picker.evaluate(f"[...{names}].every(e => e.ariaLabel || e.textContent)")


def test_names_that_the_bank_lacks_are_shown_and_stay(picker):
    picker.evaluate(f"{TEXT}.value = 'nobody:0.5, subject 2'; 0")
    picker.wait_for("document.querySelector('.seqlora-warning')?.textContent === 'not in this bank'")
    picker.drag(CHECK, 1)
    text_is(picker, "nobody:0.5")


def test_the_bank_is_found_through_a_reroute_and_a_training_node(picker):
    picker.evaluate(
        "{ const reroute = LiteGraph.createNode('Reroute'), train = LiteGraph.createNode('SeqLoRATrainConcept');"
        f"app.graph.add(reroute); app.graph.add(train); {GRAPH}[1].disconnectInput(1); train.connect(0, reroute, 0);"
        f"reroute.connect(0, {GRAPH}[1], 1) }}"
    )
    picker.wait_for(f"!document.querySelector('{CHECK}')")
    picker.evaluate("app.graph._nodes.at(-1).widgets.find(widget => widget.name === 'bank_name').value = 'picked'; 0")
    picker.wait_for(f"document.querySelectorAll('{CHECK}').length === 4")


def test_a_locked_concept_stays_as_it_is_until_it_is_unlocked(picker):
    lock = "document.querySelectorAll('.seqlora-lock')"
    picker.evaluate(f"{lock}[1].click()")
    picker.wait_for(f"{lock}[1].ariaPressed === 'true'")
    picker.click("button", "None")
    text_is(picker, "subject 1:1")
    picker.drag(CHECK, 1)  # the first that is off
    text_is(picker, "subject 1:1, subject 0:1")
    locked = "document.querySelector('.seqlora-locked')"
    picker.drag(".seqlora-locked .seqlora-strength", right=40)
    picker.drag(".seqlora-locked input[type=checkbox]")
    picker.drag(".seqlora-locked .seqlora-grip", down=36)
    text_is(picker, "subject 1:1, subject 0:1")
    assert picker.evaluate(f"{GRAPH}[1].serialize().properties['SeqLoRA locked']") == ["subject 1"]
    picker.click("button", "All")
    text_is(picker, "subject 1:1, subject 0:1, subject 2:1, subject 3:1")
    picker.evaluate(f"{locked}.querySelector('.seqlora-lock').click()")
    picker.wait_for(f"!{locked}")
    picker.drag(CHECK, 0)
    text_is(picker, "subject 0:1, subject 2:1, subject 3:1")


def test_the_card_says_how_far_a_concept_overlaps_those_that_are_on(picker):
    picker.evaluate("document.querySelector('.seqlora-row .seqlora-name').focus()")
    card = "document.querySelector('.seqlora-card')?.textContent"
    picker.wait_for(f"{card}?.includes('orthogonal to the 3 others')")
    own = "import('/extensions/seqlora/js/card.js').then(m => m.overlapText("
    measured = "{names: ['a', 'b', 'c'], pairs: [[0, 1, 0.25], [0, 2, 1e-9], [1, 2, 0.5]], limit: 1e-5}"
    assert picker.evaluate(f"{own}{measured}, 'a', ['b', 'c']))") == "b 0.25"
    assert picker.evaluate(f"{own}{measured}, 'b', ['c']))") == "c 0.50"
    assert picker.evaluate(f"{own}{measured}, 'a', ['c']))") == "orthogonal to the 1 others that are on"


def test_one_concept_is_picked_for_a_rename(page, host):
    make_bank(host, "picked", 4)
    build(page, "SeqLoRABankLoader", "SeqLoRARenameConcept")
    page.drag(".seqlora-row input[type=radio]", 2)
    page.wait_for(f"{GRAPH}[1].widgets[0].value === 'subject 2'")


def test_concepts_are_picked_for_regions(page, host):
    make_bank(host, "picked", 4)
    build(page, "SeqLoRABankLoader", "SeqLoRAComposeRegions")
    page.drag(CHECK, 2)
    text_is(page, "subject 0:1, subject 1:1, subject 3:1")
