"""ComfyUI's own front end in a headless browser: every example workflow opens from the template browser, and runs."""

import itertools
import json
from collections.abc import Sequence

import pytest
from banks import make_bank
from browser import GRAPH, Browser, draw_nodes_as_elements, find, own_errors, wait_until
from test_workflows import NAMES, SMALLEST, read, read_api

pytestmark = pytest.mark.slow


def open_template(page: Browser, name: str) -> None:
    """As a user does: the template browser, the pack's category, the card; closes what a first visit shows."""
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.click("li, span, div", "seqlora", until=find("h3", name))
    page.click("h3", name)
    page.wait_for(f"{GRAPH}.length === {len(read(name)['nodes'])} && !document.querySelector('.p-dialog')")


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_without_a_complaint_and_is_its_api_twin(page, host, name):
    page.errors.clear()
    open_template(page, name)
    assert (
        page.evaluate(f"{GRAPH}.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).length") == 0
    )
    assert page.evaluate("app.graph.links.size") == len(read(name)["links"])
    exported = json.loads(page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))"))
    for key, node in read_api(name).items():
        assert exported[key]["class_type"] == node["class_type"]
        assert {input_name: exported[key]["inputs"][input_name] for input_name in node["inputs"]} == node["inputs"]
    page.screenshot(host.folder / f"{name}.png")
    show_nodes(page, name)
    assert own_errors(page, host) == []


def shown_texts(page: Browser) -> dict[str, str]:
    """What the pack's nodes show, by their type."""
    texts = f"{GRAPH}.map(n => [n.type, n.widgets?.find(w => w.name === 'text')?.element.textContent])"
    return {kind: text for kind, text in page.evaluate(texts) if text}


def boxes_of_nodes(page: Browser) -> list[tuple[str, float, float, float, float]]:
    """Title, left, top, right, bottom of every node with its title bar, in px of the canvas; of Nodes 2.0 as drawn."""
    boxes = f"""{GRAPH}.map(node => {{
        const element = document.querySelector(`[data-node-id="${{node.id}}"]`)?.getBoundingClientRect();
        const [width, height] = element ? [element.width, element.height].map(side => side / app.canvas.ds.scale)
            : [node.size[0], node.size[1] + 30];
        return [node.title, node.pos[0], node.pos[1] - 30, node.pos[0] + width, node.pos[1] - 30 + height] }})"""
    return list(map(tuple, page.evaluate(boxes)))


def covered(page: Browser) -> list[tuple[str, str]]:
    """The pairs of nodes that cover each other, and of groups and nodes that stick out of one or cover its title."""
    nodes = boxes_of_nodes(page)
    groups = "app.graph._groups.map(g => [g.title, ...g.pos, g.pos[0] + g.size[0], g.pos[1] + g.size[1], g.font_size])"
    found = [(a[0], b[0]) for a, b in itertools.combinations(nodes, 2) if overlap(a, b)]
    drawn_as_elements = page.evaluate("Boolean(document.querySelector('[data-node-id]'))")
    for *group, font_size in [] if drawn_as_elements else page.evaluate(groups):  # laid out for the classic sizes
        title = (group[0], group[1], group[2], group[3], group[2] + font_size)
        for node in nodes:
            inside = all(group[i] <= node[i] for i in (1, 2)) and all(node[i] <= group[i] for i in (3, 4))
            if overlap(title, node) or (overlap(group, node) and not inside):
                found.append((group[0], node[0]))
    return found


def overlap(a: Sequence, b: Sequence) -> bool:
    return a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]


def run_to_the_end(page: Browser) -> None:
    """Queue the graph, and wait until its job has ended and the page has taken notice."""
    page.evaluate(
        "new Promise(resolve => { const { api } = comfyAPI.api; for (const end of ['success', 'error'])"
        "  api.addEventListener(`execution_${end}`, () => setTimeout(resolve, 500), { once: true });"
        "  app.queuePrompt(0) })"
    )


def test_the_texts_of_nodes_stay_after_the_job_and_the_report_is_whole(page, host):
    """On nodes of the size that they have when a user adds them, for a bank whose report is long."""
    make_bank(host, "long")
    page.errors.clear()
    page.evaluate("document.querySelector('.p-dialog-close-button')?.click()")
    page.evaluate(
        "app.graph.clear(); for (const type of ['SeqLoRABankLoader', 'SeqLoRAInspectBank'])"
        " app.graph.add(LiteGraph.createNode(type));"
        f"{GRAPH}[0].widgets[0].value = 'long'; {GRAPH}[1].pos = [500, 100]; {GRAPH}[0].connect(0, {GRAPH}[1], 0); 0"
    )
    run_to_the_end(page)
    for kind, last in (("SeqLoRABankLoader", "are free in each layer"), ("SeqLoRAInspectBank", "directions free")):
        assert shown_texts(page)[kind].count("subject") >= 12
        assert last in shown_texts(page)[kind]
    report = f"{GRAPH}[1].widgets.find(widget => widget.name === 'text')"
    page.wait_for(f"{report}.element.clientHeight > 0")
    page.screenshot(host.folder / "report.png")
    for side in ("Height", "Width"):
        assert page.evaluate(f"{report}.element.scroll{side} <= {report}.element.client{side}")
    assert page.evaluate(f"{report}.y + {report}.computedHeight <= {GRAPH}[1].size[1]")
    assert own_errors(page, host) == []
    if "has_intermediate_output" in host.request("/object_info")["SeqLoRABankLoader"]:
        page.evaluate(f"{GRAPH}[0].widgets.find(widget => widget.name === 'text').element.textContent = ''")
        run_to_the_end(page)
        assert "subject" in shown_texts(page)["SeqLoRABankLoader"]


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def elements(page, request):
    """Whether nodes are drawn as elements."""
    draw_nodes_as_elements(page, request.param)
    yield request.param
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_runs_from_the_browser_and_covers_nothing(page, host, pictures, elements, name):
    """In the order of the names, so that the later ones find the bank that an earlier one filled."""
    open_template(page, name)
    show_nodes(page, name)
    own = {"bank_name": f"{'elements' if elements else 'canvas'}-{'one' if name == '1-train-one' else 'three'}"}
    small = {**SMALLEST, "SeqLoRATrainConcept": {**SMALLEST["SeqLoRATrainConcept"], **own}, "SeqLoRABankLoader": own}
    page.evaluate(
        f"{GRAPH}.forEach(node => Object.entries({json.dumps(small)}[node.type] ?? {{}}).forEach("
        "([name, value]) => { node.widgets.find(widget => widget.name === name).value = value }))"
    )
    page.errors.clear()
    run_to_the_end(page)
    trainings = f"{GRAPH}.filter(node => node.type === 'SeqLoRATrainConcept')"
    texts = f"{trainings}.map(node => node.widgets.find(widget => widget.name === 'text')?.element.textContent)"
    wait_until(lambda: all("Final loss" in str(text) for text in page.evaluate(texts)), "a training said nothing")
    page.wait_for(f"{GRAPH}.filter(n => n.type === 'SaveImage').some(n => app.nodeOutputs[n.id]?.images?.length)")
    if not elements:
        page.wait_for(f"{GRAPH}.find(node => node.type === 'SaveImage').imgs?.length")
    page.screenshot(host.folder / f"{name}-{'elements' if elements else 'canvas'}.png")
    assert own_errors(page, host) == []
    assert page.evaluate("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length") in (None, 0)
    assert covered(page) == []


def has_apps(page: Browser) -> bool:
    """Whether the page can show a workflow as an App, which front ends of 2025 cannot."""
    return int(page.evaluate("window.__COMFYUI_FRONTEND_VERSION__.split('.')[1]")) >= 45


def shows_form(page: Browser) -> bool:
    """Whether the page shows the open workflow as an App."""
    workflow = "app.extensionManager.workflow?.activeWorkflow"
    return page.evaluate(f"({workflow}?.activeMode ?? {workflow}?.initialMode) === 'app'")


def show_nodes(page: Browser, name: str) -> None:
    """Leave the form of a template that opens as an App for its nodes; others show nodes already."""
    if not name.endswith(".app") or not has_apps(page):
        return
    wait_until(lambda: shows_form(page), "no form came")
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    wait_until(lambda: not shows_form(page), "the form stayed")


def test_the_app_is_a_form_with_its_settings_and_the_image(page, host, pictures):
    make_bank(host, "pets", 1)
    name = NAMES[-1]
    if not has_apps(page):
        pytest.skip("this front end has no Apps")
    open_template(page, name)
    page.errors.clear()  # a host without its package of templates misses some files of its own
    asked = [node["label"] for each in read(name)["nodes"] for node in each["inputs"] if "label" in node]
    labels = "[...document.querySelectorAll('[data-testid=builder-widget-label]')].map(e => e.textContent.trim())"
    page.wait_for(f"{labels}.length >= {len(asked)}")
    assert sorted(page.evaluate(labels)) == sorted(asked)
    page.screenshot(host.folder / "app.png")
    show_nodes(page, name)
    assert own_errors(page, host) == []


def test_no_text_or_footer_of_a_template_covers_another_node_in_nodes_2(page, host):
    """With long texts, and with the lists of concepts."""
    draw_nodes_as_elements(page, True)
    for name in NAMES:
        page.evaluate(f"app.loadGraphData({json.dumps({**read(name), 'extra': {}})})")  # an App as nodes, too
        page.wait_for(f"document.querySelectorAll('[data-node-id]').length === {len(read(name)['nodes'])}")
        page.evaluate(
            f"{GRAPH}.filter(node => node.type.startsWith('SeqLoRA')).forEach(node =>"
            " node.onExecuted({ text: ['a line that is so long that it is drawn in two\\n'.repeat(8)] }))"
        )
        page.wait_for("[...document.querySelectorAll('.seqlora-text')].every(text => text.clientHeight > 100)")
        page.screenshot(host.folder / f"{name}-elements.png")
        assert covered(page) == [], name
    draw_nodes_as_elements(page, False)
