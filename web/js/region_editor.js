// Regions drawn on the canvas of Compose Regions.  The Region nodes' plain widgets keep the values; this writes them.
import { banksVersion, connectedBank, readBank } from "./banks.js";
import "./concept_picker.js"; // whose list comes above
import { isLinked, valueOf, widgetOf } from "./links.js";
import { addDisplay, after, app, element, growToFit, oneStep, t } from "./page.js";
import { addressOf, backgroundChoice } from "./region_background.js";
import { EDGES, freePlace } from "./region_boxes.js";
import { RegionCanvas } from "./region_canvas.js";
import { addRegion, boxOf, canvasSize, chainOf, lockOf, removeRegion, write } from "./region_chain.js";
import { coloursOf, conceptOf } from "./region_colours.js";
import { RegionList } from "./region_list.js";

const COMPOSE = "SeqLoRAComposeRegions";
const RATIOS = ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"];
const BAR = 28, ROW = 62, GAP = 4, MARGIN = 10, TALLEST = 300, MOST_ROWS = 4, WIDE = 560; // px; rows
const EVERY = 300; // ms between two looks at the graph
const RESTORING = 10000; // ms that the page may take to undo

const memory = new Map(); // node of a workflow -> what the page alone knows of it: image, ratio, selected region
let undone = null; // where the focus was when the page began to undo, which makes all nodes anew

/** The editor on one node. */
class RegionEditor {
  constructor(node) {
    Object.assign(this, { node, chain: [], concepts: [], read: "", shown: "", built: "" });
    const actions = {
      select: (index) => this.select(index), end: () => oneStep(), remove: (index) => this.remove(index),
      change: (index, box) => this.write(index, box), write: (index, values) => this.write(index, values), draw: (box) => this.add(box),
    };
    this.canvas = new RegionCanvas(actions);
    this.list = new RegionList(actions);
    this.bar = element("div", { className: "seqlora-bar" });
    this.hint = element("div", { className: "seqlora-hint", role: "status" });
    this.stage = element("div", { className: "seqlora-stage" }, this.canvas.root);
    this.root = element("div", {
      className: "seqlora seqlora-regions", role: "group", "aria-label": t("regions.label"), onkeydown: (event) => this.key(event),
    }, this.bar, element("div", { className: "seqlora-body" }, this.stage, this.list.root), this.hint);
    this.display = addDisplay(node, "region_editor", this.root, { getMinHeight: () => this.height() });
    this.timer = setInterval(() => this.look(), EVERY);
    this.look();
  }

  stop() {
    clearInterval(this.timer);
  }

  /** What the page alone knows of this node; it outlives an undo. */
  get own() {
    const { id, graph } = this.node, workflow = app.extensionManager?.workflow?.activeWorkflow?.path;
    const key = [workflow, graph === (app.rootGraph ?? app.graph) ? "" : graph.id, id].join(" ");
    if (!memory.has(key)) memory.set(key, { ratio: RATIOS[0], background: null, selected: null });
    return memory.get(key);
  }

  get wide() {
    return this.node.size[0] >= WIDE;
  }

  stageHeight() {
    const width = (this.node.size[0] - 2 * MARGIN) * (this.wide ? 0.5 : 1);
    return Math.round(Math.min(TALLEST, width / (this.ratio ?? 1)));
  }

  listHeight() {
    return Math.min(this.chain.length, MOST_ROWS) * ROW;
  }

  height() {
    const [stage, list] = [this.stageHeight(), this.listHeight()];
    return 2 * BAR + 2 * GAP + 2 * MARGIN + (this.wide ? Math.max(stage, list) : stage + (list && list + GAP));
  }

  /** The regions as the canvas and the list show them. */
  regions() {
    const texts = this.chain.map((node) => Object.fromEntries(["prompt", "concepts"].map((name) => [name, String(valueOf(node, name) ?? "").trim()])));
    const about = texts.map((text, index) => (isLinked(this.chain[index], "concepts") ? undefined : conceptOf(text, this.concepts)));
    const colours = coloursOf(about);
    return this.chain.map((node, index) => {
      const { prompt, concepts } = texts[index], given = (name) => isLinked(node, name) && t("regions.elsewhere");
      const name = given("prompt") || prompt || given("concepts") || concepts || t("regions.unnamed");
      return { index, node, name, colour: colours[index], box: boxOf(node), lock: lockOf(node) };
    });
  }

  /** Ask for the concepts of the connected bank; the next look shows them. */
  async readConcepts() {
    const bank = connectedBank(this.node), read = JSON.stringify([bank ?? null, banksVersion()]);
    if (read === this.read) return;
    this.read = read;
    const { concepts = [] } = bank ? await readBank(bank) : {};
    if (read === this.read) this.concepts = concepts;
  }

  /** Draw again what is different in the graph from what is shown. */
  look() {
    if (!this.node.graph) return;
    this.readConcepts();
    this.chain = chainOf(this.node);
    const { own } = this, regions = this.regions(), size = canvasSize(this.node), address = addressOf(own.background);
    const rows = regions.map(({ node, lock }) => [node.graph.id, node.id, lock, isLinked(node, "prompt"), isLinked(node, "strength")]);
    const values = regions.map(({ node, name, colour, box }) => [name, colour, box, widgetOf(node, "prompt")?.value, widgetOf(node, "strength")?.value]);
    const shown = JSON.stringify([rows, values, size, own.ratio, own.selected, address, this.node.size[0]]);
    if (shown !== this.shown) {
      this.shown = shown;
      this.update(regions, size, address, JSON.stringify([rows, size]));
    }
    this.focusAfterUndo();
  }

  /** Draw anew; rows and bar are made anew only where they differ in more than values. */
  update(regions, size, address, built) {
    const { own } = this;
    this.ratio = size ? size[0] / size[1] : own.ratio.split(":").reduce((width, height) => width / height);
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    if (built !== this.built) {
      this.built = built;
      this.drawBar(size);
      this.list.rebuild(regions);
    }
    this.draw(regions, size, address);
    this.focus(focused);
  }

  draw(regions, size, address) {
    const { canvas, own } = this;
    this.root.classList.toggle("seqlora-wide", this.wide);
    canvas.show(regions.filter(({ lock }) => !lock), own.selected);
    this.list.show(regions, own.selected);
    canvas.root.style.setProperty("--seqlora-ratio", this.ratio);
    canvas.root.setAttribute("aria-label", t("regions.canvas", { size: size ? size.join(" × ") : own.ratio }));
    canvas.image.hidden = !address;
    if (canvas.image.getAttribute("src") !== address) canvas.image.src = address;
    this.stage.style.minHeight = `${this.stageHeight()}px`;
    this.list.root.style.minHeight = `${this.listHeight()}px`;
    const selected = regions[own.selected];
    this.hint.textContent = selected && !selected.lock
      ? EDGES.map((edge) => `${t(`regions.${edge}`)} ${selected.box[edge]}`).join(", ") : t("regions.help");
    growToFit(this.node);
  }

  drawBar(size) {
    const { own } = this;
    const add = element("button", { type: "button", title: t("regions.add.tip"), onclick: () => this.add(freePlace(this.regions().filter(({ lock }) => !lock).map(({ box }) => box))) }, t("regions.add"));
    add.dataset.key = "add";
    const ratio = size ? element("span", { className: "seqlora-size", title: t("regions.size.tip") }, size.join(" × "))
      : element("select", { title: t("regions.ratio.tip"), "aria-label": t("regions.ratio"), onchange: () => { this.own.ratio = ratio.value; this.look(); } },
        ...RATIOS.map((value) => element("option", { value, selected: value === own.ratio }, value)));
    this.bar.replaceChildren(add, ratio, ...backgroundChoice(own.background, (background) => {
      this.own.background = background; // of the workflow as it is called now
      this.look();
    }));
  }

  /** Give the focus to the part with a key. */
  focus(key) {
    const part = key && this.root.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (part && part !== document.activeElement) part.focus({ preventScroll: true });
  }

  /** Give the focus back that the page took from the node before this one. */
  focusAfterUndo() {
    if (undone?.own !== this.own || undone.root === this.root || !this.root.getClientRects().length) return;
    if (Date.now() < undone.until) this.focus(undone.key);
    undone = null;
  }

  /** Keep the page's shortcuts for nodes away, except those with Ctrl, such as undo. */
  key(event) {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    else if (["z", "y"].includes(event.key.toLowerCase()))
      undone = { own: this.own, root: this.root, key: event.target.dataset.key, until: Date.now() + RESTORING };
  }

  select(index) {
    if (this.own.selected === index) return;
    this.own.selected = index;
    this.look();
  }

  write(index, values) {
    write(this.chain[index], values);
    this.look();
  }

  add(box) {
    const index = chainOf(this.node).length;
    addRegion(this.node, box);
    this.look();
    this.select(index);
    this.focus(`prompt ${index}`);
  }

  remove(index) {
    this.look(); // the graph may have changed since
    if (index >= this.chain.length) return;
    removeRegion(this.chain[index]);
    const left = this.chain.length - 1;
    this.own.selected = left ? Math.min(index, left - 1) : null;
    this.look();
    this.focus(left ? `select ${this.own.selected}` : "add");
  }
}

app.registerExtension({
  name: "SeqLoRA.RegionEditor",
  nodeCreated(node) {
    if (node.comfyClass !== COMPOSE) return;
    const editor = new RegionEditor(node);
    after(node, "onRemoved", () => editor.stop());
  },
});
