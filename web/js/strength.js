// A number to drag, type, or change with the arrow keys; with Shift in fine steps.
import { element } from "./page.js";
import { written } from "./selection.js";

const PIXELS = 4; // per step of a drag

/**
 * An input for a number; `changed` receives every new value.  Its method `show` shows another one, unless it is in use.
 * A step is what a key changes, and `fine` with Shift.
 */
export function strengthInput(label, value, changed, limits = {}) {
  const { step = 0.1, fine = 0.01, decimals = 2, least = -Infinity, most = Infinity } = limits;
  const input = element("input", {
    type: "text", inputMode: "decimal", className: "seqlora-strength", role: "spinbutton", "aria-label": label, autocomplete: "off",
  });
  const current = () => Number(input.value.replace(",", "."));
  const display = (shown) => {
    value = shown;
    input.value = Number.isNaN(shown) ? "?" : written(shown, Math.max(3, decimals));
    input.setAttribute("aria-valuenow", String(shown));
  };
  const set = (next) => {
    const scale = 10 ** decimals;
    display(Math.min(Math.max(Math.round(next * scale) / scale, least), most));
    changed(value);
  };
  const by = (steps, isFine) => steps * (isFine ? fine : step);
  input.show = (shown) => { if (input !== document.activeElement) display(shown); };
  input.addEventListener("keydown", (event) => {
    const sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    event.stopPropagation(); // Delete and the like are the page's shortcuts for nodes
    if (sign && !event.altKey) {
      event.preventDefault();
      set((current() || 0) + by(sign, event.shiftKey));
    } else if (event.key === "Enter") input.blur();
  });
  input.addEventListener("change", () => {
    if (input.value.trim() && Number.isFinite(current())) set(current());
    else display(value);
  });
  dragging(input, current, by, set);
  display(value);
  return input;
}

/** Change a value with the pointer; a press without a movement leaves the input to the keyboard. */
function dragging(input, current, by, set) {
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
      set(start + by(steps, event.shiftKey));
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
