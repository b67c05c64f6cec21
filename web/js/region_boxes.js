// Boxes {left, top, right, bottom} as fractions of a canvas: moved, resized, drawn, and where their edges snap to.

export const EDGES = ["left", "top", "right", "bottom"];
const AXES = [["left", "right"], ["top", "bottom"]];
const OPPOSITE = { left: "right", right: "left", top: "bottom", bottom: "top" };
const GRID = 16; // lines to snap to, per side
const FINE = 0.01; // of a side, per key
const LEAST = 1 / 32; // of a side
const ROUNDING = 1e4, EPSILON = 1e-6;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const tidy = (box) => Object.fromEntries(EDGES.map((edge) => [edge, Math.round(box[edge] * ROUNDING) / ROUNDING]));
const distance = (box, from, by) => (from === "left" || from === "right" ? by[0] : by[1]);

/** The nearest line of the grid or of another box's edges; without other boxes, the value itself. */
function snapped(value, others, [low, high]) {
  const lines = others?.flatMap((box) => [box[low], box[high]]) ?? [value];
  if (others) lines.push(Math.round(value * GRID) / GRID);
  return lines.reduce((best, line) => (Math.abs(line - value) < Math.abs(best - value) ? line : best));
}

/** A box moved by [right, down]; it snaps to the grid and to `others` unless these are null. */
export function move(box, by, others = null) {
  const moved = { ...box };
  for (const axis of AXES) {
    const [low, high] = axis, size = box[high] - box[low], start = box[low] + distance(box, low, by);
    const pulls = [start, start + size].map((edge) => snapped(edge, others, axis) - edge);
    const pull = Math.abs(pulls[1]) < Math.abs(pulls[0]) ? pulls[1] : pulls[0];
    moved[low] = clamp(start + pull, Math.min(0, 1 - size), Math.max(0, 1 - size));
    moved[high] = moved[low] + size;
  }
  return tidy(moved);
}

/** A box with some of its edges moved by [right, down], at least `LEAST` wide and high. */
export function resize(box, edges, by, others = null) {
  const resized = { ...box };
  for (const edge of edges) {
    const axis = AXES.find((names) => names.includes(edge)), opposite = box[OPPOSITE[edge]];
    const value = clamp(snapped(box[edge] + distance(box, edge, by), others, axis), 0, 1);
    resized[edge] = edge === axis[0] ? Math.min(value, opposite - LEAST) : Math.max(value, opposite + LEAST);
  }
  return tidy(resized);
}

/** The box between two points [x, y]; null if it is smaller than a box may be. */
export function drawn(from, to, others = null) {
  const box = {};
  AXES.forEach((axis, index) => {
    const ends = [from[index], to[index]].map((value) => clamp(snapped(value, others, axis), 0, 1));
    [box[axis[0]], box[axis[1]]] = [Math.min(...ends), Math.max(...ends)];
  });
  return box.right - box.left < LEAST || box.bottom - box.top < LEAST ? null : tidy(box);
}

/** How far a key moves an edge: to the next line of the grid, or by a fine step. */
function step(value, sign, fine) {
  if (!sign || fine) return sign * FINE;
  const line = sign > 0 ? Math.floor(value * GRID + EPSILON) + 1 : Math.ceil(value * GRID - EPSILON) - 1;
  return line / GRID - value;
}

/** A box moved by a key into a direction [right, down] of -1, 0 or 1. */
export function nudge(box, [right, down], fine) {
  return move(box, [step(box.left, right, fine), step(box.top, down, fine)]);
}

/** A box with one edge moved by a key into a direction [right, down] of -1, 0 or 1. */
export function nudgeEdge(box, edge, [right, down], fine) {
  return resize(box, [edge], [step(box[edge], right, fine), step(box[edge], down, fine)]);
}

/** The part of a box that lies on the canvas. */
export const visible = (box) => Object.fromEntries(EDGES.map((edge) => [edge, clamp(box[edge], 0, 1)]));

const area = (box) => (box.right - box.left) * (box.bottom - box.top);

/** The place of each box from the back to the front: smaller ones lie in front, so that all can be reached. */
export function depths(boxes) {
  const order = boxes.map((_, index) => index).sort((a, b) => area(boxes[b]) - area(boxes[a]) || a - b);
  return boxes.map((_, index) => order.indexOf(index));
}

/** The largest box, in eighths of the canvas, that no other box covers: the left half first, the middle at last. */
export function freePlace(boxes) {
  if (!boxes.length) return { left: 0, top: 0, right: 0.5, bottom: 1 };
  const lines = Array.from({ length: 9 }, (_, index) => index / 8);
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const spans = lines.flatMap((low) => lines.filter((high) => high > low).map((high) => [low, high]));
  let best = null;
  for (const [left, right] of spans)
    for (const [top, bottom] of spans) {
      const box = { left, top, right, bottom };
      if ((!best || area(box) > area(best)) && !boxes.some((other) => overlaps(box, other))) best = box;
    }
  return best ?? { left: 0.25, top: 0.25, right: 0.75, bottom: 0.75 };
}
