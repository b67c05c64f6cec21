// Shows the report of Inspect Bank as a whole: the text that the front end itself shows on a node is cut at 200 px.
import { app } from "../../scripts/app.js";

const LINE = 16, PADDING = 8, FONT = 11, CHARACTER = 6.7; // px
const STYLE = `margin: 0; padding: ${PADDING}px; overflow: auto; white-space: pre; user-select: text;
  font: ${FONT}px/${LINE}px monospace; color: var(--input-text); background: var(--comfy-input-bg); border-radius: 8px`;

/** The node's widget for the report, which is made at the first report. */
function reportWidget(node) {
  const made = node.widgets?.find((widget) => widget.name === "report");
  if (made) return made;
  const element = document.createElement("pre");
  element.className = "seqlora-report";
  element.style.cssText = STYLE;
  const lines = () => element.textContent.split("\n").length;
  const widget = node.addDOMWidget("report", "SEQLORA_REPORT", element, {
    getMinHeight: () => lines() * LINE + 4 * PADDING, // with a scroll bar below a long line
    getValue: () => element.textContent,
    setValue: (text) => { element.textContent = text; },
    serialize: false,
  });
  widget.serialize = false;
  return widget;
}

app.registerExtension({
  name: "SeqLoRA.InspectBank",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "SeqLoRAInspectBank") return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      executed?.apply(this, arguments);
      const text = (message?.text ?? []).join("\n");
      reportWidget(this).value = text;
      const widest = Math.max(...text.split("\n").map((line) => line.length));
      const [width, height] = this.computeSize();
      this.setSize([
        Math.max(this.size[0], width, widest * CHARACTER + 6 * PADDING),
        Math.max(this.size[1], height),
      ]);
      this.setDirtyCanvas(true, true);
    };
  },
});
