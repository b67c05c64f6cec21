// What the modules share: the page's objects, elements, translated texts, notices and the style sheet.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export { api, app };

const EVERY = 200, MOST_LOOKS = 100; // ms between two looks whether a page has shown a content; looks
const messages = {};

/** Load the texts of the user's language over the English ones; what the host cannot give stays English. */
async function loadTexts() {
  const all = await (await api.fetchApi("/i18n")).json();
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";
  for (const language of ["en", locale.split("-")[0], locale]) Object.assign(messages, all[language]?.seqlora);
}

/** The text under a key of `seqlora` in locales/LANGUAGE/main.json, with {values} filled in. */
export function t(key, values = {}) {
  return (messages[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** An element with properties, attributes (names with a hyphen, and role) and listeners (on...). */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Show a notice: "success", "info", "warn" or "error". */
export function notify(severity, summary, detail = "") {
  const toast = app.extensionManager?.toast;
  const method = toast?.[{ warn: "warning" }[severity] ?? severity];
  if (method) method.call(toast, summary, { description: detail });
  else toast?.add?.({ severity, summary, detail, life: 6000 });
}

/** The node of an execution id such as "7" or "3:7", where 7 lies in the subgraph of 3; undefined if there is none. */
export function nodeOfExecution(id) {
  let graph = app.rootGraph ?? app.graph, node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(/^\d+$/.test(part) ? Number(part) : part);
    graph = node?.subgraph;
  }
  return node ?? undefined;
}

/** All nodes of the open workflow with the execution id of each, those in subgraphs included. */
export function allNodes(graph = app.rootGraph ?? app.graph, prefix = "", depth = 0) {
  const nodes = graph?.nodes ?? graph?._nodes ?? [];
  return nodes.flatMap((node) => [
    [node, `${prefix}${node.id}`],
    ...(node.subgraph && depth < 20 ? allNodes(node.subgraph, `${prefix}${node.id}:`, depth + 1) : []),
  ]);
}

/** Do something that the page's undo takes back in one step; without an action, what was changed since the last step. */
export function oneStep(action = () => {}) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  tracker?.beforeChange?.();
  try {
    return action();
  } finally {
    tracker?.afterChange?.();
  }
}

/** Call `own` after a method of one node that the page or another extension may have set. */
export function after(node, method, own) {
  const before = node[method];
  node[method] = function (...values) {
    const result = before?.apply(this, values);
    own.apply(this, values);
    return result;
  };
}

/** Nodes 2.0 keeps what a node showed when an undo makes the node anew: put the new content in its place. */
function takePlace(node, name, content, looks = MOST_LOOKS) {
  if (content.isConnected || !looks) return;
  const shown = document.querySelector(`[data-node-id="${node.id}"] [data-seqlora="${name}"]`);
  if (shown && node.graph && node.graph === app.canvas?.graph) shown.replaceWith(content);
  else setTimeout(() => takePlace(node, name, content, looks - 1), EVERY);
}

/** Add a DOM widget without a value of its own: saved graphs and prompts do not know it. */
export function addDisplay(node, name, content, options) {
  const widget = node.addDOMWidget(name, `SEQLORA_${name.toUpperCase()}`, content, {
    getValue: () => "", setValue: () => {}, serialize: false, hideOnZoom: false, ...options,
  });
  widget.serialize = false;
  content.dataset.seqlora = name;
  setTimeout(() => takePlace(node, name, content), EVERY);
  return widget;
}

/** Give a node at least the size that its widgets need; it never shrinks. */
export function growToFit(node, width = 0) {
  const [least, height] = node.computeSize();
  if (node.size[0] < Math.max(least, width) || node.size[1] < height)
    node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "SeqLoRA.Page",
  async init() {
    const href = new URL("style.css", import.meta.url).href;
    document.head.append(element("link", { rel: "stylesheet", href }));
    await loadTexts().catch((error) => console.warn("SeqLoRA: no texts", error));
  },
});
