"""A training run is watched on the node that trains, and comes back after a reload."""

import json

import pytest
import websocket
from browser import GRAPH, READY, own_errors
from comfy_server import JOB_SECONDS
from graphs import loader, training
from test_workflows import SMALLEST, read

pytestmark = pytest.mark.slow

VIEW = "document.querySelector('.seqlora-training')"
CANVAS = f"{VIEW}.querySelector('canvas')"
PIXELS = f"{CANVAS}.getContext('2d').getImageData(0, 0, {CANVAS}.width, {CANVAS}.height).data"
# The line of the held-out images and its legend: there are pixels of its own orange.
HELD_OUT = (
    f"!{VIEW}.querySelector('.seqlora-legend').hidden && {CANVAS}.ariaLabel.includes('held-out images at step 5')"
    f" && (data => data.some((red, i) => i % 4 === 0 && red > 180 && data[i + 2] < 60 && data[i + 3] > 200))({PIXELS})"
)
SMALL = {**SMALLEST, "SeqLoRATrainConcept": {"steps": 4, "resolution": 64, "preview_every": 2, "bank_name": "watched"}}


def test_losses_and_previews_appear_while_training_and_after_a_reload(page, host, pictures):
    page.errors.clear()
    page.evaluate(f"app.loadGraphData({json.dumps(read('1-train-one'))})")
    page.wait_for(f"{GRAPH}.some(node => node.type === 'SeqLoRATrainConcept')")
    page.evaluate(
        f"{GRAPH}.forEach(node => Object.entries({json.dumps(SMALL)}[node.type] ?? {{}}).forEach("
        "([name, value]) => { node.widgets.find(widget => widget.name === name).value = value }));"
        "{ const other = LiteGraph.createNode('SeqLoRATrainConcept'); app.graph.add(other); other.mode = 2 }"  # muted
        "{ const settings = LiteGraph.createNode('SeqLoRATrainingSettings'); app.graph.add(settings);"
        " for (const [name, value] of [['hold_out', 1], ['preview_every', 2]])"
        " settings.widgets.find(widget => widget.name === name).value = value;"
        f" const train = {GRAPH}.find(node => node.type === 'SeqLoRATrainConcept');"
        " settings.connect(0, train, train.inputs.findIndex(input => input.name === 'settings')) }"
    )
    hint = f"{VIEW}?.querySelector('.seqlora-hint').textContent"
    page.evaluate(f"window.seen = []; setInterval(() => seen.push({hint}), 50); app.queuePrompt(0)")
    page.wait_for(f"{VIEW}?.textContent.includes('at the end')")
    assert page.evaluate(
        "seen.some(text => text?.startsWith('encoding')) && seen.some(text => text?.includes(' left'))"
    )
    page.wait_for(f"[...{VIEW}.querySelectorAll('img')].filter(image => image.naturalWidth).length >= 2")
    seen = page.evaluate(f"{VIEW}.textContent")
    assert page.evaluate("document.querySelectorAll('.seqlora-training').length") == 1  # none on the other node
    page.wait_for(HELD_OUT)
    page.screenshot(host.folder / "trained.png")
    assert own_errors(page, host) == []
    page.call("Page.reload")
    page.wait_for(READY)
    page.wait_for(f"{VIEW}?.textContent === {seen!r}")
    page.wait_for(f"[...{VIEW}.querySelectorAll('img')].filter(image => image.naturalWidth).length >= 2")
    page.wait_for(HELD_OUT)


def test_a_second_tab_of_the_same_user_shows_the_run_and_on_no_other_node(page, host, pictures):
    """The tab opens with the graph that the user had last, as the page itself restores it."""
    seen = page.evaluate(f"{VIEW}.textContent")
    with page.second_tab(f"http://127.0.0.1:{host.port}/") as tab:
        tab.wait_for(READY)
        tab.errors.clear()  # the host's own, of files that it lacks
        tab.wait_for(f"{VIEW}?.textContent === {seen!r}")
        tab.wait_for(f"[...{VIEW}.querySelectorAll('img')].filter(image => image.naturalWidth).length >= 2")
        tab.evaluate(
            "{ const other = LiteGraph.createNode('SeqLoRATrainConcept'); app.graph.add(other);"
            f"const run = {GRAPH}.find(node => node.type === other.type);"
            "for (const name of ['bank_name', 'concept_name']) other.widgets.find(w => w.name === name).value ="
            " run.widgets.find(w => w.name === name).value }; window.dispatchEvent(new Event('focus'))"
        )
        tab.evaluate("new Promise(resolve => setTimeout(resolve, 1500))")
        assert tab.evaluate("document.querySelectorAll('.seqlora-training').length") == 1
        assert tab.evaluate(
            f"{GRAPH}.filter(node => node.widgets?.some(w => w.name === 'training')).map(node => node.title)"
        ) == ["Learn the dog"]
        tab.screenshot(host.folder / "second-tab.png")
        assert own_errors(tab, host) == []


def test_progress_reaches_the_client_that_queued_and_the_route_has_all(host):
    """Of a graph from the page; a prompt without one shows on no node of any page."""
    prompt = {**loader(), **training("dog", bank_name="progress", steps=2)}
    with host._listening() as (other, _), host._listening() as (own, client):
        extra = {"extra_pnginfo": {"workflow": {"id": "a graph"}}}
        job = host.request("/prompt", {"prompt": prompt, "client_id": client, "extra_data": extra})["prompt_id"]
        host.wait(job)
        other.settimeout(1)
        own.settimeout(JOB_SECONDS)
        events = []
        while not events or events[-1]["state"] == "running":
            frame = own.recv()
            message = json.loads(frame) if isinstance(frame, str) else {}
            if message.get("type") == "seqlora.progress":
                events.append(message["data"])
        assert {event["node"] for event in events} == {"train-dog"}
        assert [event["point"][0] for event in events if "point" in event][-1] == events[-1]["steps"]
        with pytest.raises(websocket.WebSocketTimeoutException):
            while True:
                assert "seqlora.progress" not in str(other.recv())
    run = host.request("/seqlora/run?workflow=a+graph&node=train-dog")
    assert (run["state"], run["concept"], len(run["points"])) == ("done", "dog", run["steps"])
    assert run["held_out"] == []  # none are held out
    assert host.request("/seqlora/run?workflow=another&node=train-dog") == {}
    assert host.request("/seqlora/run?workflow=&node=train-dog") == {}
