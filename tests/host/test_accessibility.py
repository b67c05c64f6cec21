"""axe-core finds nothing serious in what the pack shows in the page, in both themes.

`npm pack axe-core` downloads it; AXE_CORE is the path of the file axe.min.js in it.
"""

import os
from pathlib import Path

import pytest
from banks import make_bank
from browser import own_errors

AXE = os.environ.get("AXE_CORE")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE, reason="no axe-core: npm pack axe-core, and name its axe.min.js in AXE_CORE"),
]

BUILD = """{
    [...app.graph._nodes].forEach(node => app.graph.remove(node));
    const types = ['SeqLoRABankLoader', 'SeqLoRAComposeRegions', 'SeqLoRARenameConcept', 'SeqLoRATrainConcept'];
    const [loader, compose, rename, train] = types.map((type, place) => {
        const node = LiteGraph.createNode(type);
        node.pos = [460 * place, 60];
        app.graph.add(node);
        return node });
    loader.widgets[0].value = 'checked';
    for (const node of [compose, rename])
        loader.connect(0, node, node.inputs.findIndex(input => input.name === 'bank'));
    app.canvas.ds.scale = 0.7;
    app.canvas.ds.offset = [500, 40];
    app.canvas.setDirty(true, true);
    loader.onExecuted({ text: ['a line'] });
    train.widgets.find(widget => widget.name === 'concept_name').value = 'owl';
    const detail = { node: String(train.id), workflow: String((app.rootGraph ?? app.graph).id), concept: 'owl',
        state: 'running', status: 'step 2 of 9', points: [[1, 0.4], [2, 0.3]], held_out: [[0, 0.5], [2, 0.4]],
        steps: 9, previews: [] };
    comfyAPI.api.api.dispatchEvent(new CustomEvent('seqlora.progress', { detail })) }"""
VIEWS = ("picker", "regions", "training", "browser", "text", "card")
# Copies in front of everything: over the graph's canvas axe cannot tell what is behind a text.
COPY = """{
    document.querySelector('#copies')?.remove();
    const copies = document.createElement('div');
    copies.id = 'copies';
    copies.style = 'position: fixed; inset: 0; z-index: 99999; overflow: auto';
    copies.style.background = LiteGraph.NODE_DEFAULT_BGCOLOR;
    for (const root of document.querySelectorAll('.seqlora')) {
        const copy = root.cloneNode(true);
        Object.assign(copy.style, { position: 'static', width: '400px', height: 'auto' });
        copies.append(copy) }
    document.body.append(copies) }"""
SERIOUS = """axe.run({ include: [['.seqlora']] }, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.filter(found => ['serious', 'critical'].includes(found.impact)).flatMap(({ id, nodes }) =>
        nodes.map(node => `${id}: ${node.html} ${node.failureSummary}`)))"""


def test_axe_finds_nothing_serious_in_either_theme(page, host):
    make_bank(host, "checked", 8)
    page.errors.clear()
    page.evaluate("document.querySelectorAll('.p-dialog-close-button').forEach(button => button.click())")
    page.evaluate(BUILD)
    page.evaluate("localStorage.setItem('SeqLoRA.bank', 'checked')")
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.seqlora')")
    page.wait_for("document.querySelectorAll('.seqlora-face').length === 8")
    page.evaluate(
        "document.querySelector('.seqlora-face').click(), document.querySelector('.seqlora-overlaps').open = true"
    )
    for number in range(2):
        page.click("button", "Add region", until=f"document.querySelectorAll('.seqlora-box').length > {number}")
    page.evaluate("document.querySelector('.seqlora-row .seqlora-name').focus()")
    for view in VIEWS:
        page.wait_for(f"document.querySelector('.seqlora-{view}')?.getClientRects().length")
    page.evaluate(f"{Path(AXE).read_text('utf-8')}; 0")
    for theme in ("dark", "light"):
        page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{theme}')")
        dark = "document.querySelector('html.dark-theme, body.dark-theme') !== null"  # front ends differ in where
        page.wait_for(f"({dark}) === {'true' if theme == 'dark' else 'false'}")
        page.screenshot(host.folder / f"accessible-{theme}.png")
        page.evaluate(COPY)
        assert page.evaluate(SERIOUS) == [], theme
    page.evaluate(
        "app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'), document.querySelector('#copies').remove()"
    )
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.seqlora')")
    assert own_errors(page, host) == []
