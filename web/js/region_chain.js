// The Region nodes behind a Compose Regions node: their boxes, the canvas that they lie on, adding and removing one.
import { comesIn, consumersOf, goesOut, isLinked, linkIn, nodeAround, sourceOf, valueOf, widgetOf } from "./links.js";
import { oneStep } from "./page.js";
import { EDGES } from "./region_boxes.js";

const REGION = "SeqLoRARegion", REGIONS = "regions", LATENT = "LATENT";
const NEVER = 2, BYPASSED = 4; // modes of nodes
const MOST = 100; // regions; nodes between a sampler and its empty latents
const GAP = 60; // px of the graph, between a new node and its neighbours

const slotOf = (node) => node.inputs.findIndex((input) => input.name === REGIONS);

/** The Region nodes that act, in their order. */
export function chainOf(compose) {
  const chain = [], seen = new Set();
  for (let node = sourceOf(compose, REGIONS); node && !seen.has(node) && seen.size < MOST; node = sourceOf(node, REGIONS)) {
    if (node.comfyClass !== REGION || node.mode === NEVER) break;
    if (node.mode !== BYPASSED) chain.unshift(node);
    seen.add(node);
  }
  return chain;
}

/** Why the box of a Region cannot be edited, as a key of the texts; undefined if it can. */
export function lockOf(region) {
  if (isLinked(region, "mask")) return "regions.mask";
  return isLinked(region, "bounding_box") || EDGES.some((edge) => isLinked(region, edge)) ? "regions.linked" : undefined;
}

export const boxOf = (region) => Object.fromEntries(EDGES.map((edge) => [edge, Number(widgetOf(region, edge)?.value ?? 0)]));

/** Set widgets of a Region, except those that a link gives. */
export function write(region, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(region, name);
    if (!widget || isLinked(region, name) || widget.value === value) continue;
    widget.value = value;
    if (typeof value !== "number") widget.callback?.(value); // those of numbers round to 0.01, coarser than the grid
  }
  region.graph?.setDirtyCanvas?.(true, true);
}

/** Add a Region with a box at the end of the chain. */
export function addRegion(compose, box) {
  return oneStep(() => {
    const [node, slot] = endOf(compose), { graph } = node;
    const link = linkIn(graph, node.inputs[slot].link), last = chainOf(compose).at(-1);
    const region = LiteGraph.createNode(REGION);
    place(region, graph, last?.graph === graph ? last : undefined, node);
    graph.add(region);
    write(region, box);
    if (link) graph.getNodeById(link.origin_id)?.connect(link.origin_slot, region, slotOf(region));
    region.connect(0, node, slot);
    return region;
  });
}

/** The input that the last Region is connected to, in the graph where that node is. */
function endOf(compose) {
  let [node, slot] = [compose, slotOf(compose)];
  for (let link; comesIn((link = linkIn(node.graph, node.inputs[slot].link)));) {
    const around = nodeAround(node.graph);
    if (!around) break;
    [node, slot] = [around, link.origin_slot];
  }
  return [node, slot];
}

/** Put a new node below the last one, or to the left of its target, where it covers no other. */
function place(region, graph, last, target) {
  const [width, height] = region.size;
  let [x, y] = last ? [last.pos[0], last.pos[1] + last.size[1] + GAP] : [target.pos[0] - width - GAP, target.pos[1]];
  const covers = (node) => node.pos[0] < x + width && x < node.pos[0] + node.size[0] && node.pos[1] < y + height + GAP && y < node.pos[1] + node.size[1] + GAP;
  for (let other; (other = (graph.nodes ?? graph._nodes).find(covers));) y = other.pos[1] + other.size[1] + GAP;
  region.pos = [x, y];
}

/** Remove a Region; the one before it is connected to what came after. */
export function removeRegion(region) {
  oneStep(() => {
    const { graph } = region, before = linkIn(graph, region.inputs[slotOf(region)].link);
    const after = (region.outputs[0].links ?? []).map((id) => linkIn(graph, id)).filter(Boolean);
    if (comesIn(before) && after.some(goesOut)) {
      region.mode = BYPASSED; // as no link can cross a subgraph without a node
      return;
    }
    graph.remove(region);
    if (before) for (const link of after) join(graph, before, link);
  });
}

/** Connect the origin of one link to the target of another; either may be the border of a subgraph. */
function join(graph, before, after) {
  const { origin_slot: output } = before, { target_slot: input } = after;
  const from = graph.getNodeById(before.origin_id), to = graph.getNodeById(after.target_id);
  if (from && to) from.connect(output, to, input);
  else if (to && comesIn(before)) graph.inputs[output].connect(to.inputs[input], to);
  else if (from && goesOut(after)) graph.outputs[input].connect(from.outputs[output], from);
}

/** The size in px of the image that is drawn, from the empty latents of the next sampler; undefined if not known. */
export function canvasSize(compose) {
  const seen = new Set([compose]);
  for (const node of seen) {
    if (seen.size > MOST) return undefined;
    const slot = node.inputs?.findIndex((input) => input.type === LATENT && input.link != null) ?? -1;
    if (slot >= 0) return latentSize(sourceOf(node, slot));
    for (const next of consumersOf(node)) seen.add(next);
  }
}

function latentSize(node) {
  for (let passed = 0; node && passed < MOST; passed++) {
    const size = ["width", "height"].map((name) => numberOf(node, name));
    if (size.every((side) => side > 0)) return size;
    const slot = node.inputs?.findIndex((input) => input.type === LATENT && input.link != null) ?? -1;
    node = slot < 0 ? undefined : sourceOf(node, slot);
  }
}

/** A number that a widget has, or the node that is linked to it. */
function numberOf(node, name) {
  return Number(isLinked(node, name) ? widgetOf(sourceOf(node, name) ?? {}, "value")?.value : valueOf(node, name));
}
