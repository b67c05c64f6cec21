// A number to drag, type, or change with the arrow keys; with Shift in fine steps.
import { element } from "./page.js";
import { written } from "./selection.js";

const STEP = 0.1, FINE = 0.01; // per key
const PIXELS = 4; // per step of a drag

/** An input for a strength; `changed` receives every new value. */
export function strengthInput(label, value, changed) {
  const input = element("input", {
    type: "text", inputMode: "decimal", className: "seqlora-strength", value: Number.isNaN(value) ? "?" : written(value),
    role: "spinbutton", "aria-label": label, "aria-valuenow": String(value), autocomplete: "off",
  });
  const current = () => Number(input.value.replace(",", "."));
  const set = (next) => {
    input.value = written(Math.round(next * 100) / 100);
    input.setAttribute("aria-valuenow", input.value);
    changed(Number(input.value));
  };
  input.addEventListener("keydown", (event) => {
    const sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    event.stopPropagation(); // Delete and the like are the page's shortcuts for nodes
    if (sign && !event.altKey) {
      event.preventDefault();
      set((current() || 0) + sign * (event.shiftKey ? FINE : STEP));
    } else if (event.key === "Enter") input.blur();
  });
  input.addEventListener("change", () => {
    if (input.value.trim() && Number.isFinite(current())) set(current());
    else input.value = written(value);
  });
  dragging(input, current, set);
  return input;
}

/** Change a value with the pointer; a press without a movement leaves the input to the keyboard. */
function dragging(input, current, set) {
  let from = null, start = 0, moved = false;
  input.addEventListener("pointerdown", (event) => {
    if (input.disabled || document.activeElement === input || event.button) return; // browsers tell disabled ones, too
    [from, start, moved] = [event.clientX, current() || 0, false];
    input.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  input.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const steps = Math.trunc((event.clientX - from) / PIXELS);
    if (steps || moved) {
      moved = true;
      set(start + steps * (event.shiftKey ? FINE : STEP));
    }
  });
  const end = () => {
    const held = from !== null;
    from = null;
    if (held && !moved) {
      input.focus();
      input.select();
    }
  };
  input.addEventListener("pointerup", end);
  input.addEventListener("pointercancel", () => { from = null; });
}
