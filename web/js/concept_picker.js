// Concepts picked from pictures.  The nodes' plain text widgets keep the values; these lists write them.
import { banksVersion, connectedBank, readBank, thumbnail } from "./banks.js";
import { hideCard, withCard } from "./card.js";
import { addDisplay, after, app, element, growToFit, notify, t } from "./page.js";
import * as selection from "./selection.js";
import { strengthInput } from "./strength.js";

const MANY = { SeqLoRAComposeConcepts: "concepts", SeqLoRAComposeRegions: "concepts" }; // node -> widget of a selection
const ONE = { SeqLoRAExportConcept: "concept_name", SeqLoRARemoveConcept: "concept_name", SeqLoRARenameConcept: "concept_name" };
const ROW = 36, BAR = 28, MARGIN = 10, MOST_ROWS = 6, FILTER_FROM = 7; // px; rows
const EVERY = 300; // ms between two looks at the graph
const LOCKED = "SeqLoRA locked"; // property of a node: the folded names whose rows stay as they are

/** A list of concepts on one node. */
class Picker {
  constructor(node, name, single) {
    Object.assign(this, { node, name, single, query: "", strengths: new Map(), shown: "", rows: 0 });
    this.list = element("div", { className: "seqlora-list", role: single ? "radiogroup" : "list" });
    this.bar = element("div", { className: "seqlora-bar" });
    this.hint = element("div", { className: "seqlora-hint", role: "status" });
    this.root = element("div", { className: "seqlora seqlora-picker", role: "group", "aria-label": t("picker.label") },
      this.bar, this.list, this.hint);
    this.list.dataset.captureWheel = "true";
    const height = () => this.rows * ROW + [this.bar, this.hint].filter((part) => part.hasChildNodes()).length * BAR + 2 * MARGIN;
    this.display = addDisplay(node, "picker", this.root, { getMinHeight: height });
    this.timer = setInterval(() => this.look(), EVERY);
    this.look();
  }

  get widget() {
    return this.node.widgets?.find((widget) => widget.name === this.name);
  }

  get text() {
    return String(this.widget?.value ?? "");
  }

  set text(value) {
    this.write(value);
    this.look();
  }

  write(value) {
    const { widget } = this;
    widget.value = value;
    widget.callback?.(value);
    this.changed();
  }

  /** Let the page take notice of a change. */
  changed() {
    this.node.graph?.setDirtyCanvas?.(true, true);
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  }

  isLocked(name) {
    return (this.node.properties?.[LOCKED] ?? []).includes(selection.fold(name));
  }

  setLocked(name, locked) {
    const key = selection.fold(name), others = (this.node.properties[LOCKED] ?? []).filter((other) => other !== key);
    this.node.properties[LOCKED] = locked ? [...others, key] : others;
    this.changed();
    this.look();
  }

  /** All that decides what is shown. */
  state() {
    const linked = this.node.inputs?.some((input) => input.name === this.name && input.link != null);
    const bank = connectedBank(this.node);
    return [JSON.stringify([linked, bank ?? String(bank), this.text, this.query, banksVersion(), this.node.properties?.[LOCKED]]), linked, bank];
  }

  stop() {
    clearInterval(this.timer);
    hideCard();
  }

  /** Draw again if the graph, the text or the bank is different from what is shown. */
  async look() {
    if (!this.node.graph || !this.widget) return;
    const [state, linked, bank] = this.state();
    if (state === this.shown) return;
    this.shown = state;
    const problem = linked ? "picker.linked" : bank === null ? "picker.unconnected" : "picker.unknown";
    const view = bank && !linked ? await readBank(bank) : { problem: t(problem) };
    if (state === this.shown) this.draw(view);
  }

  draw(view) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    hideCard();
    const { concepts = [], problem } = view;
    const rows = problem ? [] : this.single ? this.choices(view) : this.selected(view);
    const matching = rows.filter(([name]) => this.isLocked(name) || selection.fold(name).includes(selection.fold(this.query)));
    this.list.replaceChildren(...matching.map(([, row]) => row));
    this.drawBar(view);
    this.hint.textContent = problem ?? (concepts.length ? this.summary(view) : t("picker.empty"));
    this.rows = Math.min(rows.length, MOST_ROWS);
    this.list.style.minHeight = `${this.rows * ROW}px`;
    growToFit(this.node);
    if (focused) this.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  drawBar(view) {
    const { concepts = [] } = view;
    if (this.bar.dataset.concepts === String(concepts.length)) return; // the filter keeps its focus
    this.bar.dataset.concepts = concepts.length;
    const button = (key, click) => element("button", { type: "button", title: t(`${key}.tip`), onclick: click }, t(key));
    const parts = concepts.length && !this.single ? [
      button("picker.all", () => this.all()), button("picker.none", () => this.none()), button("picker.copy", () => this.copy()),
    ] : [];
    if (concepts.length >= FILTER_FROM)
      parts.unshift(element("input", {
        type: "search", placeholder: t("picker.filter"), "aria-label": t("picker.filter"), value: this.query,
        onkeydown: (event) => event.stopPropagation(),
        oninput: (event) => { this.query = event.target.value; this.look(); },
      }));
    this.bar.replaceChildren(...parts);
  }

  summary(view) {
    if (this.single) return "";
    const names = view.concepts.map(({ name }) => selection.fold(name));
    const on = this.entries(view).filter(({ name, strength }) => strength !== 0 && names.includes(selection.fold(name))).length;
    return t(this.text.trim() ? "picker.some" : "picker.every", { on, all: view.concepts.length });
  }

  /** What the text selects; an empty one selects every concept. */
  entries(view) {
    this.view = view;
    const names = view.concepts.map(({ name }) => name);
    return this.text.trim() ? selection.parse(this.text, names) : selection.parse(names.map((name) => `${name}:1`).join(", "), names);
  }

  /** The entries as text: an empty text is written out before it is changed. */
  editable() {
    const entries = this.entries(this.view);
    return this.text.trim() ? [this.text, entries] : (() => {
      const text = selection.write(entries);
      return [text, selection.parse(text, this.view.concepts.map(({ name }) => name))];
    })();
  }

  /** Rows of the selected concepts in their order, then of the others. */
  selected(view) {
    const entries = this.entries(view), of = new Map(view.concepts.map((concept) => [selection.fold(concept.name), concept]));
    const names = entries.map(({ name }) => selection.fold(name));
    const rows = entries.map((entry, index) => {
      const twice = names.indexOf(names[index]) !== index;
      return [entry.name, this.row(view, of.get(names[index]), entry, index, entries.length, twice)];
    });
    const others = view.concepts.filter(({ name }) => !names.includes(selection.fold(name)));
    return [...rows, ...others.map((concept) => [concept.name, this.row(view, concept, { name: concept.name, strength: null }, -1, 0)])];
  }

  row(view, concept, { name, strength }, index, count, twice = false) {
    const key = selection.fold(name), on = index >= 0 && strength !== 0, locked = this.isLocked(name);
    const toggle = element("input", {
      type: "checkbox", checked: on, disabled: locked, "aria-label": t("picker.use", { name }), onchange: () => this.toggle(name, index),
    });
    toggle.dataset.key = `use ${key}`;
    const row = element("div", { className: "seqlora-row", role: "listitem" }, toggle, this.picture(view, concept));
    row.append(this.nameOf(view, concept, name));
    row.classList.toggle("seqlora-off", !on);
    if (!concept) row.append(element("span", { className: "seqlora-warning" }, t("picker.missing")));
    else if (twice) row.append(element("span", { className: "seqlora-warning" }, t("picker.twice")));
    else if (Number.isNaN(strength)) row.append(element("span", { className: "seqlora-warning seqlora-number" }, t("picker.number")));
    row.classList.toggle("seqlora-locked", locked);
    const lock = this.lock(name, locked);
    if (index < 0) {
      row.append(lock);
      return row;
    }
    const input = strengthInput(t("picker.strength", { name }), strength, (next) => {
      this.strength(index, key, next);
      toggle.checked = next !== 0;
      row.classList.toggle("seqlora-off", next === 0);
      row.querySelector(".seqlora-number")?.remove();
    });
    input.dataset.key = `strength ${key}`;
    input.title = t("picker.strength.tip");
    const grip = this.handle(name, index, count);
    input.disabled = grip.disabled = locked;
    row.append(input, grip, lock);
    return row;
  }

  /** The button that keeps a row as it is. */
  lock(name, locked) {
    const button = element("button", {
      type: "button", className: "seqlora-lock", title: t("picker.lock.tip"), "aria-label": t("picker.lock", { name }),
      "aria-pressed": String(locked), onclick: () => this.setLocked(name, !locked),
    }, element("i", { className: locked ? "pi pi-lock" : "pi pi-lock-open", "aria-hidden": "true" }));
    button.dataset.key = `lock ${selection.fold(name)}`;
    return button;
  }

  /** The names of the concepts that are on, except one. */
  others(name) {
    const known = new Map(this.view.concepts.map((concept) => [selection.fold(concept.name), concept.name]));
    const on = this.entries(this.view).filter(({ strength }) => strength !== 0).map((entry) => selection.fold(entry.name));
    return on.filter((key) => key !== selection.fold(name) && known.has(key)).map((key) => known.get(key));
  }

  picture(view, concept) {
    if (!concept?.thumbnail) return element("span", { className: "seqlora-thumbnail", "aria-hidden": "true" });
    return element("img", { className: "seqlora-thumbnail", src: thumbnail(view, concept), alt: "", loading: "lazy", draggable: false });
  }

  nameOf(view, concept, name) {
    const label = element("span", { className: "seqlora-name", tabIndex: concept ? 0 : -1 }, name);
    label.dataset.key = `name ${selection.fold(name)}`;
    return concept ? withCard(label, view, concept, this.single ? undefined : () => this.others(name)) : label;
  }

  /** The grip that moves a row: with the pointer, or with the arrow keys. */
  handle(name, index, count) {
    const grip = element("button", {
      type: "button", className: "seqlora-grip", "aria-label": t("picker.move", { name }), title: t("picker.move.tip"),
      onkeydown: (event) => {
        const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        event.stopPropagation();
        if (!by || index + by < 0 || index + by >= count) return;
        event.preventDefault();
        this.move(index, index + by);
      },
    }, "⠿");
    grip.dataset.key = `move ${selection.fold(name)}`;
    const target = (event) => {
      const rows = [...this.list.children].slice(0, count);
      const below = rows.findIndex((row) => event.clientY < row.getBoundingClientRect().bottom);
      return this.query ? index : below < 0 ? count - 1 : below;
    };
    const mark = (to) => [...this.list.children].forEach((row, at) => row.classList.toggle("seqlora-target", at === to && to !== index));
    let held = false;
    grip.addEventListener("pointerdown", (event) => {
      if (grip.disabled) return;
      held = true;
      grip.setPointerCapture(event.pointerId);
    });
    grip.addEventListener("pointermove", (event) => { if (held) mark(target(event)); });
    grip.addEventListener("pointerup", (event) => {
      if (held && target(event) !== index) this.move(index, target(event));
      held = false;
    });
    grip.addEventListener("pointercancel", () => { held = false; mark(-1); });
    return grip;
  }

  toggle(name, index) {
    const [text, entries] = this.editable(), key = selection.fold(name), strength = entries[index]?.strength;
    if (index < 0) this.text = selection.append(text, entries, name, this.strengths.get(key) ?? 1);
    else if (strength === 0) this.text = selection.setStrength(text, entries, index, this.strengths.get(key) ?? 1);
    else {
      if (!Number.isNaN(strength)) this.strengths.set(key, strength);
      // An empty text would mean all concepts: the last one stays, at 0.
      this.text = entries.length > 1 ? selection.remove(text, entries, index) : selection.setStrength(text, entries, 0, 0);
    }
  }

  strength(index, key, value) {
    const [text, entries] = this.editable();
    if (value) this.strengths.set(key, value);
    this.write(selection.setStrength(text, entries, index, value));
    this.shown = this.state()[0]; // the input stays, as it is still held
    this.hint.textContent = this.summary(this.view);
  }

  move(from, to) {
    const [text, entries] = this.editable();
    this.text = selection.move(text, entries, from, to);
  }

  /** Every concept, those that are on with their strengths; an empty text where that says the same.  Not locked ones. */
  all() {
    let [text, entries] = this.editable();
    const names = this.view.concepts.map(({ name }) => name);
    for (const [index, { name, strength }] of entries.entries())
      if (strength === 0 && !this.isLocked(name)) text = selection.setStrength(text, selection.parse(text, names), index, this.strengths.get(selection.fold(name)) ?? 1);
    for (const name of names.filter((other) => !this.isLocked(other))) {
      const parsed = selection.parse(text, names);
      if (!parsed.some((entry) => selection.fold(entry.name) === selection.fold(name)))
        text = selection.append(text, parsed, name, this.strengths.get(selection.fold(name)) ?? 1);
    }
    entries = selection.parse(text, names);
    const plain = entries.length === names.length && entries.every(({ name, strength }, index) => name === names[index] && strength === 1);
    this.text = plain ? "" : text;
  }

  none() {
    const [text, entries] = this.editable();
    for (const { name, strength } of entries) if (strength) this.strengths.set(selection.fold(name), strength);
    const names = this.view.concepts.map(({ name }) => name);
    let kept = text;
    for (let index = entries.length - 1; index >= 0; index -= 1)
      if (!this.isLocked(entries[index].name)) kept = selection.remove(kept, selection.parse(kept, names), index);
    this.text = kept.trim() ? kept : `${entries[0]?.name ?? this.view.concepts[0].name}:0`;
  }

  async copy() {
    const on = this.entries(this.view).filter(({ strength }) => strength !== 0).map(({ name }) => selection.fold(name));
    const words = on.map((key) => this.view.concepts.find(({ name }) => selection.fold(name) === key)?.words).filter(Boolean).join(", ");
    await copyText(words);
    notify("success", t("picker.copied"), words);
  }

  /** One row per concept to choose one; a name that the bank does not have comes first. */
  choices(view) {
    const chosen = selection.fold(this.text), group = `seqlora-${this.node.id}`;
    const row = (name, concept) => {
      const radio = element("input", {
        type: "radio", name: group, checked: selection.fold(name) === chosen, "aria-label": name, onchange: () => { this.text = name; },
      });
      radio.dataset.key = `use ${selection.fold(name)}`;
      const made = element("label", { className: "seqlora-row" }, radio, this.picture(view, concept), this.nameOf(view, concept, name));
      if (!concept) made.append(element("span", { className: "seqlora-warning" }, t("picker.missing")));
      return [name, made];
    };
    const rows = view.concepts.map((concept) => row(concept.name, concept));
    const known = view.concepts.some(({ name }) => selection.fold(name) === chosen);
    return chosen && !known ? [row(this.text.trim(), null), ...rows] : rows;
  }
}

/** Copy a text, also where the page has no clipboard because it is not served over https. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

app.registerExtension({
  name: "SeqLoRA.ConceptPicker",
  nodeCreated(node) {
    const name = MANY[node.comfyClass] ?? ONE[node.comfyClass];
    if (!name) return;
    const own = node.widgets?.find((widget) => widget.name === name);
    // The text field of a selection stays, in two lines below which the list is.
    if (own?.options && node.comfyClass in MANY) Object.assign(own.options, { getMinHeight: () => 52, getMaxHeight: () => 60 });
    const picker = new Picker(node, name, node.comfyClass in ONE);
    after(node, "onRemoved", () => picker.stop());
  },
});
