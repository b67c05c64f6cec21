// The canvas of the region editor: a box per region, drawn, moved and resized with the pointer and the keyboard.
import { element, t } from "./page.js";
import { EDGES, depths, drawn, move, nudge, nudgeEdge, resize, visible } from "./region_boxes.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CORNERS = [["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]];
const DRAG = 3; // px before a press is a drag

const percent = (fraction) => `${100 * fraction}%`;
const lie = (part, box) => {
  const { left, top, right, bottom } = visible(box);
  Object.assign(part.style, { left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top) });
};

/** Shows regions {index, name, colour, box}; `actions` are select, change, end, draw and remove. */
export class RegionCanvas {
  constructor(actions) {
    Object.assign(this, { actions, regions: [], selected: null, held: null });
    this.image = element("img", { alt: "", draggable: false, hidden: true });
    this.empty = element("div", { className: "seqlora-hint" }, t("regions.empty"));
    this.ghost = element("div", { className: "seqlora-ghost", hidden: true });
    this.frame = element("div", { className: "seqlora-frame", hidden: true });
    this.handles = [...CORNERS.map((edges) => this.corner(edges)), ...EDGES.map((edge) => this.edge(edge))];
    this.frame.append(...this.handles);
    this.root = element("div", {
      className: "seqlora-canvas", role: "group",
      onpointerdown: (event) => this.press(event), onpointermove: (event) => this.drag(event),
      onpointerup: (event) => this.release(event), onpointercancel: () => this.cancel(),
    }, this.image, this.empty, this.ghost, this.frame);
  }

  corner(edges) {
    const handle = element("div", { className: `seqlora-handle seqlora-${edges.join("-")}` });
    handle.dataset.edges = edges;
    return handle;
  }

  /** A handle that the keyboard reaches, too. */
  edge(edge) {
    const handle = element("div", {
      className: `seqlora-handle seqlora-${edge}`, role: "slider", tabIndex: 0, "aria-valuemin": 0, "aria-valuemax": 1,
      "aria-orientation": edge === "left" || edge === "right" ? "horizontal" : "vertical",
      onkeydown: (event) => this.key(event, (box, by) => nudgeEdge(box, edge, by, event.shiftKey)), onkeyup: () => this.keyEnd(),
    });
    handle.dataset.edges = edge;
    handle.dataset.key = `edge ${edge}`;
    return handle;
  }

  /** Show regions anew; the elements stay where only boxes and names differ, so that the focus does. */
  show(regions, selected) {
    const same = regions.length === this.regions.length && regions.every(({ index }, at) => index === this.regions[at].index);
    this.regions = regions;
    this.selected = regions.find(({ index }) => index === selected) ?? null;
    if (!same) {
      this.faces?.forEach((face) => face.remove());
      this.faces = regions.map(({ index }) => this.face(index));
      this.ghost.before(...this.faces);
    }
    this.empty.hidden = regions.length > 0;
    const depth = depths(regions.map(({ box }) => box));
    regions.forEach((region, at) => this.dress(this.faces[at], region, depth[at]));
    this.showFrame();
  }

  face(index) {
    const face = element("button", {
      type: "button", className: "seqlora-box", onfocus: () => this.actions.select(index), onkeyup: () => this.keyEnd(),
      onkeydown: (event) => {
        if (event.key === "Delete" || event.key === "Backspace") this.actions.remove(index);
        else this.key(event, (box, by) => nudge(box, by, event.shiftKey));
      },
    }, element("span", {}));
    face.dataset.index = index;
    face.dataset.key = `box ${index}`;
    return face;
  }

  dress(face, { index, name, colour, box }, depth) {
    const values = EDGES.map((edge) => `${t(`regions.${edge}`)} ${box[edge]}`).join(", ");
    face.style.setProperty("--seqlora-colour", colour);
    face.style.zIndex = depth + 1;
    face.firstChild.textContent = `${index + 1} ${name}`;
    face.title = name;
    face.setAttribute("aria-label", `${t("regions.region", { number: index + 1 })}: ${name}. ${values}`);
    face.setAttribute("aria-pressed", String(this.selected?.index === index));
    lie(face, box);
  }

  /** The handles around the selected box, behind it in the order of the keyboard. */
  showFrame() {
    this.frame.hidden = !this.selected;
    if (!this.selected) return;
    const { index, box, colour } = this.selected, face = this.faceOf(this.selected);
    if (face.nextSibling !== this.frame && !this.frame.contains(document.activeElement)) face.after(this.frame);
    this.frame.style.setProperty("--seqlora-colour", colour);
    lie(this.frame, box);
    for (const edge of EDGES) {
      const handle = this.handles.find(({ dataset }) => dataset.edges === edge);
      handle.setAttribute("aria-label", t("regions.edge", { edge: t(`regions.${edge}`), number: index + 1 }));
      handle.setAttribute("aria-valuenow", box[edge]);
    }
  }

  faceOf(region) {
    return this.faces[this.regions.indexOf(region)];
  }

  key(event, changed) {
    const by = ARROWS[event.key];
    if (!by || !this.selected || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.keyed = true;
    this.actions.change(this.selected.index, changed(this.selected.box, by));
  }

  /** However long a key is held, undo takes it back in one step. */
  keyEnd() {
    if (this.keyed) this.actions.end();
    this.keyed = false;
  }

  /** Where an event is, as fractions of the canvas. */
  at({ clientX, clientY }) {
    const { left, top, width, height } = this.root.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  press(event) {
    if (event.button || this.held) return;
    const { edges } = event.target.dataset, face = event.target.closest(".seqlora-box");
    if (face) this.actions.select(Number(face.dataset.index));
    const { index, box } = (edges || face) && this.selected ? this.selected : {};
    this.held = { index, box, edges: edges?.split(","), from: this.at(event), x: event.clientX, y: event.clientY };
    this.root.setPointerCapture(event.pointerId);
    event.preventDefault(); // no selection of text
    const part = edges && event.target.tabIndex < 0 ? this.faceOf(this.selected) : edges ? event.target : face;
    if (part) part.focus({ preventScroll: true });
    else document.activeElement?.blur(); // what was typed counts
  }

  drag(event) {
    if (!this.held) return;
    const { index, box, edges, from, x, y } = this.held, to = this.at(event);
    this.held.dragged ||= Math.hypot(event.clientX - x, event.clientY - y) >= DRAG;
    if (!this.held.dragged) return;
    const by = [to[0] - from[0], to[1] - from[1]];
    const others = event.altKey ? null : this.regions.filter((region) => region.index !== index).map((region) => region.box);
    if (box) this.actions.change(index, edges ? resize(box, edges, by, others) : move(box, by, others));
    else {
      this.held.drawn = drawn(from, to, others);
      this.ghost.hidden = !this.held.drawn;
      if (this.held.drawn) lie(this.ghost, this.held.drawn);
    }
  }

  release(event) {
    if (!this.held) return;
    this.drag(event);
    const { box, drawn: made, dragged } = this.held;
    this.held = null;
    this.ghost.hidden = true;
    if (box && dragged) this.actions.end();
    else if (made) this.actions.draw(made);
    else if (!box) this.actions.select(null);
  }

  /** Put back what was dragged. */
  cancel() {
    const { index, box } = this.held ?? {};
    this.held = null;
    this.ghost.hidden = true;
    if (box) this.actions.change(index, box);
  }
}
