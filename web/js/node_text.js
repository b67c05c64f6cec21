// Shows what the pack's nodes report after a run.  The page's own texts vanish when the job ends, or are cut.
import { addDisplay, after, api, app, element, growToFit, nodeOfExecution } from "./page.js";

const LINE = 16, PADDING = 8, MARGIN = 10, CHARACTER = 6.7; // px
const MOST_LINES = 8; // that a text gets; a longer one scrolls, except the report of a bank
const WHOLE = "SeqLoRAInspectBank";
const HOST_TEXT = "$$node-text-preview";

const isOurs = (node) => node?.comfyClass?.startsWith("SeqLoRA");
const latest = new Map(); // execution id -> the progress text of a node that runs

function lines(node, text) {
  if (node.comfyClass === WHOLE) return text.split("\n").length + 1; // a scroll bar may lie below
  const columns = Math.max(10, (node.size[0] - 2 * (PADDING + MARGIN)) / CHARACTER);
  const wrapped = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / columns)), 0);
  return Math.min(wrapped, MOST_LINES);
}

/** The node's widget for texts, which is made at the first text. */
function textWidget(node) {
  const made = node.widgets?.find((widget) => widget.name === "text");
  if (made) return made;
  const content = element("pre", { className: "seqlora seqlora-text", tabIndex: 0, role: "status" });
  content.dataset.captureWheel = "true";
  content.classList.toggle("seqlora-whole", node.comfyClass === WHOLE);
  const height = () => (content.textContent ? lines(node, content.textContent) * LINE + 2 * PADDING + 2 * MARGIN : 0);
  return addDisplay(node, "text", content, { getMinHeight: height });
}

/** Show a text on a node in place of the last one, and instead of the page's own. */
export function showText(node, text) {
  const content = textWidget(node).element;
  content.textContent = text;
  content.style.minHeight = `${lines(node, text) * LINE + 2 * PADDING}px`; // in Nodes 2.0 only the style counts
  const host = node.widgets.findIndex((widget) => widget.name === HOST_TEXT);
  if (host >= 0) {
    node.widgets[host].onRemove?.();
    node.widgets.splice(host, 1);
  }
  const widest = Math.max(...text.split("\n").map((line) => line.length));
  growToFit(node, node.comfyClass === WHOLE ? widest * CHARACTER + 6 * PADDING : 0);
}

/** The last texts of nodes that did not get to their end, such as where a run can go on. */
function showUnfinished() {
  for (const [id, text] of latest) {
    const node = nodeOfExecution(id);
    if (isOurs(node)) showText(node, text);
  }
  latest.clear();
}

app.registerExtension({
  name: "SeqLoRA.NodeText",
  setup() {
    api.addEventListener("progress_text", ({ detail }) => latest.set(String(detail.nodeId), detail.text));
    api.addEventListener("execution_start", () => latest.clear());
    for (const end of ["execution_interrupted", "execution_error"]) api.addEventListener(end, showUnfinished);
  },
  nodeCreated(node) {
    if (!isOurs(node)) return;
    after(node, "onExecuted", (message) => {
      if (!message?.text?.length) return;
      showText(node, message.text.join("\n"));
      for (const id of latest.keys()) if (nodeOfExecution(id) === node) latest.delete(id);
    });
  },
});
