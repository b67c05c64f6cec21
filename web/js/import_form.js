// Files dropped on the bank browser become a concept: what they say of themselves fills a form, which is then sent.
import { upload } from "./banks.js";
import { element, notify, t } from "./page.js";

const MOST_HEADER = 2 ** 26; // bytes; a LoRA's is some hundred kB
const FIELDS = ["name", "token", "class_word"];
const WORD_IN_LORA = /^bundle_emb\.(.+?)\.string_to_param\./;

/** The header of a .safetensors file; empty if it has none. */
async function headerOf(file) {
  const size = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  return size > MOST_HEADER ? {} : JSON.parse(await file.slice(8, 8 + size).text());
}

/** What files say of a concept's name, token and class word; the name of the file where they say nothing. */
async function proposal(files) {
  const proposed = { name: "", token: "", class_word: "" };
  for (const file of files) {
    const { __metadata__: metadata = {}, ...tensors } = await headerOf(file).catch(() => ({}));
    const keys = Object.keys(tensors), stem = file.name.replace(/\.safetensors$/i, "");
    const isWord = keys.length === 1 && tensors[keys[0]].shape?.length <= 2;
    const [token, ...rest] = (metadata["modelspec.trigger_phrase"] ?? "").trim().split(/\s+/);
    proposed.token ||= isWord ? keys[0] : keys.map((key) => key.match(WORD_IN_LORA)?.[1]).find(Boolean) ?? token;
    proposed.class_word ||= rest.join(" ");
    if (!isWord || files.length === 1) proposed.name ||= metadata["modelspec.title"] || stem;
  }
  return proposed;
}

/** The form above the cards while there is something to import; and what takes files that are dropped. */
export class ImportForm {
  /** `bank` gives the name of the bank that is shown, `done` is called after an import. */
  constructor(bank, done) {
    Object.assign(this, { bank, done });
    this.root = element("div", {});
    this.chooser = element("input", {
      type: "file", accept: ".safetensors", multiple: true, hidden: true, "aria-label": t("import.button"),
      onchange: () => { this.open([...this.chooser.files]); this.chooser.value = ""; },
    });
  }

  /** Take files that are dropped on an element; the page would open them as a workflow. */
  takeDrops(target) {
    const over = (on) => target.classList.toggle("seqlora-drop", on);
    const own = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return false;
      event.preventDefault();
      event.stopPropagation();
      return true;
    };
    target.addEventListener("dragover", (event) => over(own(event)));
    target.addEventListener("dragleave", (event) => { if (!target.contains(event.relatedTarget)) over(false); });
    target.addEventListener("drop", (event) => {
      over(false);
      if (own(event)) this.open([...event.dataTransfer.files]);
    });
  }

  async open(files) {
    if (!files.length) return;
    const wrong = files.find((file) => !/\.safetensors$/i.test(file.name));
    const problem = !this.bank() ? t("browser.empty") : wrong ? t("import.kind", { name: wrong.name })
      : files.length > 2 ? t("import.many") : "";
    if (problem) return notify("error", t("browser.failed"), problem);
    this.show(files, await proposal(files));
  }

  close() {
    this.request?.abort();
    this.root.replaceChildren();
  }

  show(files, proposed) {
    const field = (name) => element("label", {}, t(`import.${name}`), element("input", { name, value: proposed[name], required: true }));
    const project = element("label", { className: "seqlora-check", title: t("import.project.tip") },
      element("input", { type: "checkbox", name: "project" }), t("import.project"));
    this.progress = element("progress", { max: 1, value: 0, hidden: true, "aria-label": t("import.running") });
    this.submit = element("button", { type: "submit" }, t("import.start"));
    const form = element("form", {
      className: "seqlora-import", "aria-label": t("import.button"), onsubmit: (event) => { event.preventDefault(); this.send(files, form); },
    }, element("strong", {}, files.map(({ name }) => name).join(" + ")), ...FIELDS.map(field), project, this.progress,
    element("div", { className: "seqlora-bar" }, this.submit,
      element("button", { type: "button", onclick: () => this.close() }, t("import.cancel"))));
    this.root.replaceChildren(form);
    form.elements[0].focus();
  }

  async send(files, form) {
    const values = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value.trim()]));
    this.submit.disabled = true;
    this.progress.hidden = false;
    this.request = upload("import", { ...values, bank: this.bank(), project: form.elements.project.checked ? "1" : "" }, files,
      (share) => { if (share < 1) this.progress.value = share; else this.progress.removeAttribute("value"); });
    try {
      const { text } = await this.request.answer;
      notify("success", t("import.done", values), text);
      this.close();
      this.done();
    } catch (error) {
      if (error.name !== "AbortError") notify("error", t("browser.failed"), error.message);
      this.submit.disabled = false;
      this.progress.hidden = true;
    }
  }
}
