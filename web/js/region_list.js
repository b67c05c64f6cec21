// The list of the region editor: colour, prompt, strength and the box of each region, and why some cannot be edited.
import { isLinked, widgetOf } from "./links.js";
import { element, t } from "./page.js";
import { EDGES } from "./region_boxes.js";
import { strengthInput } from "./strength.js";

const STRENGTH = { least: 0, most: 1 };
const FRACTION = { step: 1 / 16, decimals: 4, least: -8, most: 8 }; // as far as the node's own inputs reach

/** Rows for regions {index, node, name, colour, box, lock}; `actions` are select, write, end and remove. */
export class RegionList {
  constructor(actions) {
    this.actions = actions;
    this.root = element("ol", { className: "seqlora-region-list", "aria-label": t("regions.list"), tabIndex: -1 });
    this.root.dataset.captureWheel = "true";
    this.rows = [];
  }

  /** Make the rows anew. */
  rebuild(regions) {
    this.rows = regions.map((region) => this.row(region));
    this.root.replaceChildren(...this.rows.map(({ root }) => root));
  }

  /** Show the values; a field with the focus is left to its user. */
  show(regions, selected) {
    regions.forEach(({ node, index, box, name, colour }, at) => {
      const { root, prompt, fields } = this.rows[at];
      root.style.setProperty("--seqlora-colour", colour);
      root.classList.toggle("seqlora-selected", index === selected);
      prompt.placeholder = name;
      set(prompt, widgetOf(node, "prompt")?.value ?? "");
      for (const [key, field] of Object.entries(fields)) field.show(key === "strength" ? widgetOf(node, key)?.value : box[key]);
    });
  }

  row({ index, node, lock }) {
    const number = index + 1, label = t("regions.region", { number });
    const keyed = (part, key) => { part.dataset.key = `${key} ${index}`; return part; };
    const select = keyed(element("button", {
      type: "button", className: "seqlora-swatch", "aria-label": t("regions.select", { number }), onclick: () => this.actions.select(index),
    }, String(number)), "select");
    const prompt = keyed(element("textarea", {
      rows: 1, "aria-label": t("regions.prompt", { number }), disabled: isLinked(node, "prompt"),
      oninput: () => this.actions.write(index, { prompt: prompt.value }), onchange: () => this.actions.end(),
      onkeydown: (event) => event.stopPropagation(),
    }), "prompt");
    const remove = keyed(element("button", {
      type: "button", className: "seqlora-remove", "aria-label": t("regions.remove", { number }), title: t("regions.remove", { number }),
      onclick: () => this.actions.remove(index),
    }, "×"), "remove");
    const field = (key, text, limits, disabled) => {
      const input = strengthInput(text, 0, (value) => this.actions.write(index, { [key]: value }), limits);
      input.disabled = disabled;
      input.addEventListener("blur", () => this.actions.end());
      input.addEventListener("pointerup", () => this.actions.end());
      return keyed(input, key);
    };
    const fields = { strength: field("strength", t("regions.strength", { number }), STRENGTH, isLinked(node, "strength")) };
    fields.strength.title = t("regions.strength.tip");
    const box = element("div", { className: "seqlora-edges" });
    if (lock) box.append(element("span", { className: "seqlora-warning" }, t(lock)));
    else for (const edge of EDGES) {
      fields[edge] = field(edge, t("regions.edge", { edge: t(`regions.${edge}`), number }), FRACTION, false);
      box.append(element("span", { className: "seqlora-edge" }, element("span", { "aria-hidden": "true" }, t(`regions.${edge}`)), fields[edge]));
    }
    const root = element("li", { className: "seqlora-region", "aria-label": label, onfocusin: () => this.actions.select(index) },
      element("div", { className: "seqlora-bar" }, select, prompt, fields.strength, remove), box);
    return { root, prompt, fields };
  }
}

function set(input, value) {
  if (input !== document.activeElement && input.value !== value) input.value = value;
}
