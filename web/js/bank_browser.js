// The sidebar tab with all banks: concepts as cards, room, overlaps, and the changes that nodes make otherwise.
import { ask, banksVersion, change, readBank, readOverlaps, thumbnail } from "./banks.js";
import { facts, hideCard, withCard } from "./card.js";
import { ImportForm } from "./import_form.js";
import { allNodes, app, element, notify, t } from "./page.js";
import { overlapMap } from "./overlap_map.js";
import { fold, parse } from "./selection.js";

const EVERY = 1000; // ms between two looks for changes
const PICTURE = 256; // px

/** The panel, made anew each time that the tab opens. */
class BankBrowser {
  constructor(root) {
    Object.assign(this, { root, bank: localStorage.getItem("SeqLoRA.bank") ?? "", query: "", opened: "" });
    this.select = element("select", { "aria-label": t("browser.bank"), onchange: () => this.choose(this.select.value) });
    const search = element("input", {
      type: "search", placeholder: t("browser.search"), "aria-label": t("browser.search"),
      oninput: () => { this.query = search.value; this.draw(); },
    });
    this.room = element("div", { className: "seqlora-room" });
    this.cards = element("div", { className: "seqlora-cards", role: "list" });
    this.overlaps = element("details", { className: "seqlora-overlaps", ontoggle: () => this.drawOverlaps() });
    this.importing = new ImportForm(() => this.bank, () => this.refresh());
    const panel = element("div", { className: "seqlora seqlora-browser" },
      element("div", { className: "seqlora-bar" }, this.select, this.button("browser.use", () => this.useInGraph()),
        this.button("import.button", () => this.importing.chooser.click()), this.importing.chooser),
      search, this.importing.root, this.room, this.cards, this.overlaps);
    root.replaceChildren(panel);
    this.importing.takeDrops(panel);
    root.addEventListener("keydown", (event) => event.stopPropagation());
    this.version = banksVersion();
    this.timer = setInterval(() => this.refresh(), EVERY);
    this.load();
  }

  stop() {
    clearInterval(this.timer);
    this.importing.close();
    hideCard();
  }

  button(key, click, values = {}) {
    return element("button", { type: "button", title: t(`${key}.tip`, values), onclick: click }, t(key));
  }

  /** Read again after a change. */
  refresh() {
    if (this.version === banksVersion()) return;
    this.version = banksVersion();
    this.load();
  }

  async load() {
    const { banks } = await ask("banks").catch((error) => ({ banks: [{ name: "", problem: error.message }] }));
    this.select.replaceChildren(...banks.map(({ name, concepts, problem }) =>
      element("option", { value: name, selected: name === this.bank }, problem ? name : `${name} (${concepts})`)));
    if (!banks.some(({ name }) => name === this.bank)) this.bank = banks[0]?.name ?? "";
    this.select.value = this.bank;
    this.view = this.bank ? await readBank(this.bank) : { problem: t("browser.empty") };
    this.draw();
    this.drawOverlaps();
  }

  choose(bank) {
    this.bank = bank;
    localStorage.setItem("SeqLoRA.bank", bank);
    this.load();
  }

  draw() {
    const { concepts = [], problem, problems = [], free, width } = this.view;
    const matching = concepts.filter((concept) => fold(`${concept.name} ${concept.words} ${concept.class_word}`).includes(fold(this.query)));
    this.cards.replaceChildren(...matching.map((concept) => this.card(concept)));
    this.room.replaceChildren();
    for (const text of problem ? [problem] : problems) this.room.append(element("div", { className: "seqlora-warning" }, text));
    if (problem) return;
    const label = t("browser.room", { free, width });
    this.room.append(element("meter", { min: 0, max: width, value: width - free, "aria-label": label }), element("div", { className: "seqlora-hint" }, label));
  }

  card(concept) {
    const open = this.opened === concept.id;
    const picture = concept.thumbnail ? element("img", { src: thumbnail(this.view, concept), alt: "", loading: "lazy" }) : element("span", { className: "seqlora-blank" });
    const face = element("button", {
      type: "button", className: "seqlora-face", "aria-expanded": String(open),
      onclick: () => { this.opened = open ? "" : concept.id; this.draw(); },
    }, picture, element("span", { className: "seqlora-name" }, concept.name), element("span", { className: "seqlora-hint" }, concept.words));
    const card = element("div", { className: "seqlora-concept", role: "listitem" }, open ? face : withCard(face, this.view, concept));
    if (open) card.append(this.details(concept));
    return card;
  }

  details(concept) {
    const rows = facts(concept).flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]);
    const file = element("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, onchange: () => this.replacePicture(concept, file.files[0]) });
    return element("div", { className: "seqlora-details" }, element("dl", {}, ...rows), element("div", { className: "seqlora-bar" },
      this.button("browser.rename", () => this.rename(concept)),
      this.button("browser.picture", () => file.click()),
      this.button("browser.export", () => this.exportConcept(concept)),
      this.button("browser.delete", () => this.remove(concept))), file);
  }

  /** Do something, and say how it went. */
  async attempt(action, done) {
    try {
      const answer = await action();
      notify("success", done, answer?.text ?? "");
    } catch (error) {
      notify("error", t("browser.failed"), error.message);
    }
    this.refresh();
  }

  change(path, concept, values, done) {
    return this.attempt(() => change(path, { bank: this.bank, id: concept.id, ...values }), done);
  }

  async rename(concept) {
    const name = await app.extensionManager.dialog.prompt({ title: t("browser.rename"), message: t("browser.rename.ask", concept), defaultValue: concept.name });
    if (name && name.trim() !== concept.name) this.change("rename", concept, { new_name: name }, t("browser.renamed", { name: name.trim() }));
  }

  async remove(concept) {
    const { dialog } = app.extensionManager, later = this.view.concepts.slice(this.view.concepts.indexOf(concept) + 1);
    const itemList = [
      ...(later.length ? [t("browser.delete.later", { names: later.map(({ name }) => name).join(", ") })] : []),
      ...nodesNaming(concept.name).map((title) => t("browser.delete.node", { title })),
    ];
    const sure = await dialog.confirm({ title: t("browser.delete"), message: t("browser.delete.ask", concept), itemList, type: "delete" });
    if (sure) this.change("remove", concept, {}, t("browser.deleted", concept));
  }

  exportConcept(concept) {
    this.change("export", concept, {}, t("browser.exported", concept));
  }

  async replacePicture(concept, file) {
    if (file) await this.attempt(async () => change("thumbnail", { bank: this.bank, id: concept.id, image: await smallPicture(file) }), t("browser.replaced", concept));
  }

  /** Add a loader of the bank and a node that composes its concepts, in the middle of what is seen. */
  useInGraph() {
    const [left, top, width, height] = app.canvas.visible_area ?? app.canvas.ds.visible_area;
    const add = (type, offset) => {
      const node = LiteGraph.createNode(type);
      node.pos = [left + width / 2 - 320 + offset, top + height / 2 - 200];
      (app.canvas.graph ?? app.graph).add(node);
      return node;
    };
    const loader = add("SeqLoRABankLoader", 0), compose = add("SeqLoRAComposeConcepts", 320);
    const name = loader.widgets.find((widget) => widget.name === "bank_name");
    name.value = this.bank;
    loader.connect(0, compose, compose.inputs.findIndex((input) => input.name === "bank"));
  }

  async drawOverlaps() {
    const title = element("summary", {}, t("browser.overlaps"));
    this.overlaps.replaceChildren(title);
    if (!this.overlaps.open || this.view?.problem || this.view.concepts.length < 2) return;
    const measured = await readOverlaps(this.bank);
    this.overlaps.replaceChildren(title, ...(measured.problem ? [measured.problem] : overlapMap(measured)));
  }
}

/** The titles of the open workflow's nodes whose text names a concept. */
function nodesNaming(name) {
  return allNodes().filter(([node]) => node.comfyClass?.startsWith("SeqLoRA")).filter(([node]) => {
    const value = (key) => String(node.widgets?.find((widget) => widget.name === key)?.value ?? "");
    const named = [...parse(value("concepts"), [name]).map((entry) => entry.name), value("concept_name")];
    return named.some((own) => fold(own) === fold(name));
  }).map(([node, id]) => `${node.title} (${id})`);
}

/** A picture file as base64, scaled down to what a thumbnail needs. */
async function smallPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error(t("browser.picture.bad")); });
  const scale = Math.min(1, PICTURE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas", { width: Math.max(1, bitmap.width * scale), height: Math.max(1, bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png").split(",")[1];
}

let open = null;

app.registerExtension({
  name: "SeqLoRA.BankBrowser",
  setup() {
    const manager = app.extensionManager;
    const tab = {
      id: "seqlora", icon: "pi pi-database", title: t("browser.title"), tooltip: t("browser.tip"), type: "custom",
      render(root) { open?.stop(); open = new BankBrowser(root); },
      destroy() { open?.stop(); open = null; },
    };
    if (manager.sidebarTab?.registerSidebarTab) manager.sidebarTab.registerSidebarTab(tab);
    else manager.registerSidebarTab?.(tab);
  },
});
