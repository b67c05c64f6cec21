// What a Train Concept node shows of its run: stage and time left, the loss, and the previews with their steps.
import { ask } from "./banks.js";
import { drawCurve } from "./loss_curve.js";
import { addDisplay, after, allNodes, api, app, element, growToFit, nodeOfExecution, t } from "./page.js";

const TRAIN = "SeqLoRATrainConcept", HOST_TEXT = "$$node-text-preview";
const CURVE = 110, LINE = 22, STRIP = 74, MARGIN = 10; // px
const EVERY = 3000; // ms between two questions after a run of which no event comes, as in a second tab

const workflowId = () => String((app.rootGraph ?? app.graph)?.id ?? "");
const conceptOf = (node) => {
  const linked = node.inputs?.some((input) => input.name === "concept_name" && input.link != null);
  return linked ? undefined : node.widgets?.find((widget) => widget.name === "concept_name")?.value;
};

/** The view of one node, which appears with its first run. */
class Training {
  constructor(node) {
    this.node = node;
    this.run = { points: [], held_out: [], previews: [] };
    this.heard = 0;
    this.status = element("div", { className: "seqlora-hint", role: "status" });
    this.canvas = element("canvas", { className: "seqlora-curve", role: "img" });
    this.legend = element("div", { className: "seqlora-legend", hidden: true },
      ...["loss", "heldout"].map((line) => element("span", { className: `seqlora-line-${line}` }, t(`training.line.${line}`))));
    this.strip = element("div", { className: "seqlora-strip", role: "list", "aria-label": t("training.previews"), tabIndex: 0 });
    this.strip.dataset.captureWheel = "true";
    this.root = element("div", { className: "seqlora seqlora-training" }, this.status, this.canvas, this.legend, this.strip);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  height() {
    return LINE + CURVE + (this.run.held_out.length ? LINE : 0) + (this.run.previews.length ? STRIP : 0) + 2 * MARGIN;
  }

  /** Show a part of a run that an event brings, or the whole of one. */
  update(news) {
    const isNew = news.points || (news.state === "running" && this.run.state !== "running");
    this.run = isNew ? { points: [], held_out: [], previews: [], ...news } : { ...this.run, ...news };
    if (news.point) this.run.points.push(news.point);
    if (news.held_out_point) this.run.held_out.push(news.held_out_point);
    this.heard = Date.now();
    if (!this.widget) this.widget = addDisplay(this.node, "training", this.root, { getMinHeight: () => this.height() });
    this.hideHostText();
    this.show(news);
  }

  /** The page's own text would say the status twice. */
  hideHostText() {
    const host = this.node.widgets.find((widget) => widget.name === HOST_TEXT);
    if (host && !host.hidden) Object.assign(host, { hidden: true, computeSize: () => [0, -4] });
  }

  show(news) {
    const { status, state, points, held_out: heldOut, steps, previews } = this.run;
    const last = points.at(-1), lastHeldOut = heldOut.at(-1), hadLegend = !this.legend.hidden;
    const ended = t(`training.${state}`, { step: last?.[0] ?? 0, steps, loss: last?.[1].toFixed(4) ?? "" });
    this.status.textContent = state === "running" ? status : last ? ended : "";
    const curves = last ? [t("training.curve", { step: last[0], steps, loss: last[1].toFixed(4) })] : [t("training.empty")];
    if (lastHeldOut) curves.push(t("training.heldout", { step: lastHeldOut[0], loss: lastHeldOut[1].toFixed(4) }));
    this.canvas.setAttribute("aria-label", curves.join(". "));
    this.legend.hidden = !lastHeldOut;
    if (news.previews) this.strip.replaceChildren(...previews.map((step) => this.preview(step)));
    this.strip.scrollLeft = this.strip.scrollWidth;
    if (news.previews || !this.grown || hadLegend === this.legend.hidden) growToFit(this.node);
    this.grown = true;
    this.draw();
  }

  preview(step) {
    const query = new URLSearchParams({ workflow: this.run.workflow, node: this.run.node, step, concept: this.run.concept });
    const label = t("training.step", { step });
    return element("figure", { role: "listitem" },
      element("img", { src: api.apiURL(`/seqlora/preview?${query}`), alt: label }), element("figcaption", {}, String(step)));
  }

  draw() {
    drawCurve(this.canvas, this.run.points, this.run.steps, this.run.held_out);
  }
}

const views = new WeakMap(); // node -> Training

function show(node, news) {
  const wanted = conceptOf(node);
  if (node?.comfyClass !== TRAIN || news.workflow !== workflowId() || (wanted !== undefined && wanted.trim() !== news.concept.trim())) return;
  if (!views.has(node)) views.set(node, new Training(node));
  views.get(node).update(news);
}

/** Ask for the runs of all training nodes of the open workflow, except those whose events come here. */
async function restore() {
  for (const [node, id] of allNodes()) {
    if (node.comfyClass !== TRAIN || Date.now() - (views.get(node)?.heard ?? 0) < EVERY) continue;
    const run = await ask("run", { workflow: workflowId(), node: id }).catch(() => ({}));
    if (run.node) show(node, run);
  }
}

const isRunning = () => allNodes().some(([node]) => views.get(node)?.run.state === "running");

app.registerExtension({
  name: "SeqLoRA.Training",
  setup() {
    api.addEventListener("seqlora.progress", ({ detail }) => {
      const node = nodeOfExecution(detail.node);
      if (node) show(node, detail);
    });
    api.addEventListener("status", () => setTimeout(restore, 500)); // a job of any tab began or ended
    window.addEventListener("focus", restore);
    setInterval(() => { if (isRunning()) restore(); }, EVERY);
  },
  afterConfigureGraph() {
    restore();
  },
});
