"""The sidebar tab: banks, their concepts as cards, and the changes to them."""

import base64

import lora_files
import pytest
from banks import make_bank
from browser import GRAPH, own_errors

pytestmark = pytest.mark.slow

FACES = "document.querySelectorAll('.seqlora-face')"
DIALOG = "document.querySelector('[role=dialog], [role=alertdialog]')"


@pytest.fixture(scope="module")
def tab(page, host):
    """The page with the tab open on a bank of four concepts."""
    bank = make_bank(host, "shelf", 4)
    page.errors.clear()
    page.evaluate("localStorage.setItem('SeqLoRA.bank', 'shelf'); app.graph.clear()")
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.seqlora')")
    page.wait_for(f"{FACES}.length === 4")
    yield page, bank
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.seqlora')")


def button(text: str) -> str:
    return f"[...document.querySelectorAll('.seqlora-browser button')].find(e => e.textContent === {text!r})"


def test_a_search_shows_the_cards_that_match(tab, host):
    page, _ = tab
    page.wait_for("[...document.querySelectorAll('.seqlora-face img')].every(image => image.naturalWidth)")
    assert page.evaluate("document.querySelector('.seqlora-room meter').value") == 4
    search = "document.querySelector('.seqlora-browser input[type=search]')"
    page.evaluate(f"{search}.value = 'SKS2'; {search}.dispatchEvent(new Event('input'))")
    page.wait_for(f"{FACES}.length === 1 && {FACES}[0].textContent.includes('subject 2')")
    page.evaluate(f"{search}.value = ''; {search}.dispatchEvent(new Event('input'))")
    page.screenshot(host.folder / "bank-browser.png")
    assert own_errors(page, host) == []


def test_the_overlaps_of_every_pair_are_mapped(tab):
    page, _ = tab
    page.evaluate("document.querySelector('.seqlora-overlaps').open = true; 0")
    page.wait_for("document.querySelectorAll('.seqlora-map span').length === 16")
    page.wait_for("document.querySelector('.seqlora-overlaps').textContent.includes('orthogonal')")


def test_a_bank_is_put_into_the_graph_with_its_concepts(tab):
    page, _ = tab
    page.evaluate(f"{button('Use in graph')}.click()")
    page.wait_for("document.querySelectorAll('.seqlora-picker input[type=checkbox]').length === 4")
    assert page.evaluate(f"{GRAPH}.map(node => node.type)") == ["SeqLoRABankLoader", "SeqLoRAComposeConcepts"]


def test_a_concept_is_renamed_and_a_deletion_asks_first(tab, host):
    page, bank = tab
    page.evaluate(f"{FACES}[0].click(); {button('Rename')}.click()")
    page.wait_for(f"{DIALOG}?.querySelector('input')")
    page.evaluate(f"{DIALOG}.querySelector('input').focus(); {DIALOG}.querySelector('input').select()")
    page.call("Input.insertText", text="owl")
    page.key("Enter")
    page.wait_for(f"[...{FACES}].some(face => face.textContent.includes('owl'))")
    assert bank.refresh().concepts[0].name == "owl"
    page.wait_for(f"!{DIALOG}")
    for answer, left in (("Cancel", 4), ("Delete", 3)):
        page.evaluate(f"{button('Delete')}.click()")
        page.wait_for(f"{DIALOG}?.textContent.includes('subject 3')")  # added later
        page.evaluate(
            f"[...{DIALOG}.querySelectorAll('button')].find(b => b.textContent.trim() === {answer!r}).click()"
        )
        page.wait_for(f"!{DIALOG} && {FACES}.length === {left}")
        assert len(bank.refresh().concepts) == left
    assert own_errors(page, host) == []


def drop(page, name: str, content: bytes) -> None:
    """Drop a file on the panel."""
    data = base64.b64encode(content).decode()
    page.evaluate(
        f"{{ const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)), data = new DataTransfer();"
        f"data.items.add(new File([bytes], {name!r}));"
        "document.querySelector('.seqlora-browser').dispatchEvent("
        "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })) }"
    )


def test_a_dropped_lora_becomes_a_concept_after_its_names_are_given(tab, host, tmp_path):
    page, bank = tab
    header = {"modelspec.title": "ink style", "modelspec.trigger_phrase": "sksink style"}
    adapters = lora_files.random_adapters(bank)
    file = lora_files.write(tmp_path / "ink.safetensors", adapters, lora_files.kohya, metadata=header)
    nodes = page.evaluate(f"{GRAPH}.length")
    drop(page, "notes.txt", b"x")
    page.wait_for("document.body.textContent.includes('notes.txt is not a .safetensors file')")
    drop(page, "ink.safetensors", file.read_bytes())
    fields = "[...document.querySelectorAll('.seqlora-import input:not([type=checkbox])')]"
    page.wait_for(f"{fields}.length === 3")
    assert page.evaluate(f"{fields}.map(field => field.value)") == ["ink style", "sksink", "style"]
    page.screenshot(host.folder / "bank-browser-import.png")
    page.evaluate(f"{fields}[0].value = 'ink'; document.querySelector('.seqlora-import [type=submit]').click()")
    page.wait_for(f"[...{FACES}].some(face => face.textContent.includes('ink'))")
    page.wait_for("document.body.textContent.includes('Imported ink') && !document.querySelector('.seqlora-import')")
    assert bank.refresh().concepts[-1].token == "sksink"
    assert page.evaluate(f"{GRAPH}.length") == nodes  # the page has not taken it for a workflow
    assert own_errors(page, host) == []
