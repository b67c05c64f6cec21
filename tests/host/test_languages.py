"""Nodes in other languages than English: the host has all their texts, and the page shows them."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LANGUAGES = sorted(path.parent.name for path in (Path(__file__).parents[2] / "locales").glob("*/nodeDefs.json"))


@pytest.fixture(scope="module")
def nodes(host) -> dict:
    return {name: info for name, info in host.request("/object_info").items() if name.startswith("SeqLoRA")}


def test_german_is_one_of_the_languages():
    assert "de" in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_a_name_and_a_tooltip(host, nodes, language):
    texts = host.request("/i18n")[language]["nodeDefs"]
    assert texts.keys() == nodes.keys()
    for name, info in nodes.items():
        own = texts[name]
        assert own["display_name"] and own["description"], name
        assert own["description"] != info["description"], name
        inputs = {key for group in ("required", "optional") for key in info["input"].get(group, {})}
        assert own["inputs"].keys() == inputs, name
        assert own["outputs"].keys() == {str(index) for index in range(len(info["output"]))}, name
        for text in (*own["inputs"].values(), *own["outputs"].values()):
            assert text["name"] and text["tooltip"].endswith("."), (name, text)


def test_the_page_shows_the_nodes_in_german(page, host, nodes):
    """Where the front end takes the language at all: newer ones take only those that they bring themselves."""
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'de')")
    try:
        if page.evaluate("app.extensionManager.setting.get('Comfy.Locale')") != "de" or not page.evaluate(
            "document.body && Number(window.__COMFYUI_FRONTEND_VERSION__?.split('.')[1] ?? 0) < 40"
        ):
            pytest.skip("this front end brings no German")
        texts = host.request("/i18n")["de"]["nodeDefs"]["SeqLoRAComposeConcepts"]
        title = "LiteGraph.registered_node_types.SeqLoRAComposeConcepts.title"
        page.wait_for(f"{title} === {json.dumps(texts['display_name'], ensure_ascii=False)}")
        label = "LiteGraph.createNode('SeqLoRAComposeConcepts').inputs[0].localized_name"
        assert page.evaluate(label) == texts["inputs"]["model"]["name"]
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
