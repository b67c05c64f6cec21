"""Regions are drawn, moved and undone in the page; the plain widgets of the Region nodes carry the values."""

import json

import pytest
from banks import make_bank
from browser import GRAPH, draw_nodes_as_elements, own_errors

pytestmark = pytest.mark.slow

EDGES = ("left", "top", "right", "bottom")
CANVAS, BOX = ".seqlora-canvas", ".seqlora-box"
COLOURS = f"[...document.querySelectorAll('{BOX}')].map(e => e.style.getPropertyValue('--seqlora-colour'))"
REGIONS = f"{GRAPH}.filter(node => node.type === 'SeqLoRARegion')"
BOXES = f"{REGIONS}.map(node => {list(EDGES)}.map(edge => node.widgets.find(widget => widget.name === edge).value))"
SIZE = f"(r => [r.width, r.height])(document.querySelector({CANVAS!r}).getBoundingClientRect())"
SAVED = "JSON.stringify(app.graph.serialize().nodes.map(node => [node.type, node.properties, node.widgets_values]))"
BUILD = """{
    [...app.graph._nodes].forEach(node => app.graph.remove(node));
    const types = { compose: 'SeqLoRAComposeRegions', sampler: 'KSampler', empty: 'EmptyLatentImage' };
    const made = Object.entries(types).map(([name, type], place) => {
        const node = LiteGraph.createNode(type);
        node.pos = [600 + 450 * place, 100];
        app.graph.add(node);
        return [name, node] });
    const { compose, sampler, empty } = Object.fromEntries(made);
    compose.connect(1, sampler, sampler.inputs.findIndex(input => input.name === 'positive'));
    empty.connect(0, sampler, sampler.inputs.findIndex(input => input.name === 'latent_image'));
    empty.widgets.find(widget => widget.name === 'width').value = 768;
    empty.widgets.find(widget => widget.name === 'height').value = 512;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [-100, 20];
    app.canvas.setDirty(true, true) }"""


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def editor(page, host, request):
    """The page with an empty canvas on Compose Regions, whose sampler draws 768 x 512."""
    page.evaluate("document.querySelectorAll('.p-dialog-close-button').forEach(button => button.click())")
    draw_nodes_as_elements(page, request.param)
    page.errors.clear()
    page.evaluate(BUILD)
    page.wait_for("document.querySelector('.seqlora-size')?.textContent === '768 × 512'")
    yield page
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    assert own_errors(page, host) == []


def draw(page, box: tuple[float, float, float, float]) -> None:
    """Drag from a box's left top to its right bottom, given as fractions of the canvas."""
    x, y = page.middle(CANVAS)
    width, height = page.evaluate(SIZE)
    corners = [(x + (box[i] - 0.5) * width, y + (box[i + 1] - 0.5) * height) for i in (0, 2)]
    page.mouse("mousePressed", *corners[0])
    page.mouse("mouseMoved", *[sum(sides) / 2 for sides in zip(*corners, strict=True)])
    page.mouse("mouseReleased", *corners[1])


def boxes_are(page, *boxes: list[float]) -> None:
    page.wait_for(f"JSON.stringify({BOXES}) === {json.dumps(json.dumps(boxes, separators=(',', ':')))}")


def test_drawn_regions_are_moved_undone_and_arrive_in_the_run(editor):
    width, height = editor.evaluate(SIZE)
    assert width / height == pytest.approx(1.5, abs=0.02)
    for number, box in enumerate(((0.06, 0.13, 0.44, 0.88), (0.55, 0.02, 0.97, 0.98))):
        draw(editor, box)
        editor.wait_for(f"document.activeElement.dataset.key === 'prompt {number}'")
        editor.call("Input.insertText", text=f"subject {number}")
    first, second = [0.0625, 0.125, 0.4375, 0.875], [0.5625, 0, 1, 1]  # on the grid
    boxes_are(editor, first, second)
    editor.evaluate(f"document.querySelectorAll('{BOX}')[1].focus()")
    editor.key("ArrowLeft")
    boxes_are(editor, first, [0.5, 0, 0.9375, 1])
    editor.key("ArrowLeft", shift=True)
    boxes_are(editor, first, [0.49, 0, 0.9275, 1])
    editor.key("z", control=True)
    boxes_are(editor, first, [0.5, 0, 0.9375, 1])
    editor.wait_for("document.activeElement.dataset.key === 'box 1'")
    editor.evaluate(
        "{ const boxes = LiteGraph.createNode('TestsRegionBoxes'); app.graph.add(boxes);"
        f"{REGIONS}[1].connect(0, boxes, 0); window.arrived = null;"
        " comfyAPI.api.api.addEventListener('executed', ({ detail }) => { arrived = detail.output.regions });"
        " app.queuePrompt(0) }"
    )
    editor.wait_for("window.arrived")
    assert editor.evaluate("arrived") == [["subject 0", *first], ["subject 1", 0.5, 0, 0.9375, 1]]


def test_a_box_is_resized_deleted_and_its_neighbours_stay_chained(editor):
    draw(editor, (0.01, 0.01, 0.33, 0.99))
    draw(editor, (0.4, 0.01, 0.6, 0.99))
    draw(editor, (0.7, 0.01, 0.99, 0.99))
    boxes_are(editor, [0, 0, 0.3125, 1], [0.375, 0, 0.625, 1], [0.6875, 0, 1, 1])
    editor.evaluate(f"document.querySelectorAll('{BOX}')[1].focus()")
    editor.key("Tab")
    editor.wait_for("document.activeElement.getAttribute('aria-label') === 'left edge of region 2'")
    editor.key("ArrowLeft")
    boxes_are(editor, [0, 0, 0.3125, 1], [0.3125, 0, 0.625, 1], [0.6875, 0, 1, 1])
    editor.evaluate(f"document.querySelectorAll('{BOX}')[1].focus()")
    editor.key("Delete")
    boxes_are(editor, [0, 0, 0.3125, 1], [0.6875, 0, 1, 1])
    assert editor.evaluate(f"{REGIONS}[1].getInputNode(0) === {REGIONS}[0]")
    names = "document.querySelectorAll('.seqlora-regions :is(input, textarea, select, button, [tabindex])')"
    assert editor.evaluate(f"[...{names}].every(part => part.hidden || part.ariaLabel || part.textContent)")


def test_regions_of_a_mask_or_of_linked_edges_are_locked(editor):
    draw(editor, (0.01, 0.01, 0.5, 0.99))
    draw(editor, (0.53, 0.01, 0.99, 0.99))
    editor.evaluate(
        "{ const mask = LiteGraph.createNode('SolidMask'), number = LiteGraph.createNode('PrimitiveFloat');"
        " app.graph.add(mask); app.graph.add(number); mask.pos = [100, 1500]; number.pos = [400, 1500];"
        f"const [first, second] = {REGIONS}; mask.connect(0, first, first.inputs.findIndex(i => i.name === 'mask'));"
        " number.connect(0, second, second.inputs.findIndex(i => i.name === 'left')) }"
    )
    editor.wait_for("document.querySelectorAll('.seqlora-region .seqlora-warning').length === 2")
    assert editor.evaluate(f"document.querySelectorAll('{BOX}').length") == 0


def test_regions_of_one_concept_share_a_colour_whatever_their_order(page, host):
    make_bank(host, "picked", 4)
    page.errors.clear()
    page.evaluate(BUILD)
    page.evaluate(
        "{ const loader = LiteGraph.createNode('SeqLoRABankLoader'); app.graph.add(loader); loader.pos = [100, 1200];"
        "loader.widgets[0].value = 'picked'; const compose = app.graph._nodes[0];"
        "loader.connect(0, compose, compose.inputs.findIndex(input => input.name === 'bank')) }"
    )
    page.wait_for(f"document.querySelector('{CANVAS}')?.getBoundingClientRect().width")
    for number in range(4):
        page.click("button", "Add region", until=f"{REGIONS}.length > {number}")
    assert len(set(page.evaluate(COLOURS))) == 1  # no concept, no colour of its own
    texts = [("a sks0 in snow", ""), ("a house", ""), ("grass", "subject 1:0.5"), ("SKS0, photo", "")]
    write = (
        f"{REGIONS}.forEach((node, i) => ['prompt', 'concepts'].forEach((name, j) => {{"
        "node.widgets.find(widget => widget.name === name).value = TEXTS[i][j] }))"
    )
    page.evaluate(write.replace("TEXTS", json.dumps(texts)))
    page.wait_for(f"(c => c[0] === c[3] && new Set(c).size === 3)({COLOURS})")
    colours = page.evaluate(COLOURS)
    page.evaluate(write.replace("TEXTS", json.dumps(texts[::-1])))
    page.wait_for(f"JSON.stringify({COLOURS}) === {json.dumps(json.dumps(colours[::-1], separators=(',', ':')))}")
    swatches = "[...document.querySelectorAll('.seqlora-swatch')].map(e => getComputedStyle(e).backgroundColor)"
    assert page.evaluate(swatches) == page.evaluate(
        "[...document.querySelectorAll('.seqlora-box')].map(e => getComputedStyle(e).borderTopColor)"
    )
    assert own_errors(page, host) == []


def test_an_image_behind_the_boxes_is_not_saved_with_the_graph(page, host):
    page.evaluate(BUILD)
    page.wait_for("document.querySelector('.seqlora-regions input[type=file]')")
    before = page.evaluate(SAVED)
    file = page.call("Runtime.evaluate", expression="document.querySelector('.seqlora-regions input[type=file]')")
    page.call(
        "DOM.setFileInputFiles", objectId=file["result"]["objectId"], files=[str(host.folder / "input" / "dog.jpg")]
    )
    page.wait_for(f"document.querySelector('{CANVAS} img').naturalWidth")
    assert page.evaluate(SAVED) == before


def test_regions_inside_a_subgraph_are_shown_and_stay_chained(page, host):
    page.errors.clear()
    page.evaluate(BUILD)
    page.wait_for(f"document.querySelector('{CANVAS}')?.getBoundingClientRect().width")
    for number, left in enumerate((0.02, 0.4, 0.77)):
        draw(page, (left, 0.02, left + 0.2, 0.98))
        page.wait_for(f"{REGIONS}.length === {number + 1}")
    page.evaluate(f"app.graph.convertToSubgraph(new Set({REGIONS}.slice(1))); 0")
    page.wait_for(f"{REGIONS}.length === 1 && document.querySelectorAll('{BOX}').length === 3")
    for left in (2, 1):
        page.click(".seqlora-remove", "×", until=f"document.querySelectorAll('{BOX}').length === {left}")
    assert page.evaluate(f"document.querySelector('{BOX}').ariaLabel").endswith("left 0, top 0, right 0.25, bottom 1")
    assert own_errors(page, host) == []
