// Ways through the graph: what feeds an input and what an output feeds, across reroutes and the borders of subgraphs.
import { app } from "./page.js";

const INPUT = -10, OUTPUT = -20; // ids that stand for a subgraph's borders; later pages write ids as texts
const DEEPEST = 50;

/** Whether a link comes from outside of its subgraph. */
export const comesIn = (link) => Number(link?.origin_id) === INPUT;
/** Whether a link leads out of its subgraph. */
export const goesOut = (link) => Number(link?.target_id) === OUTPUT;

export const linkIn = (graph, id) => (id == null ? undefined : graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id]);

const inputOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const isLinked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

/** The value of a widget; undefined where a link gives it. */
export const valueOf = (node, name) => (isLinked(node, name) ? undefined : widgetOf(node, name)?.value);

/** The node in whose subgraph a graph is. */
export function nodeAround(graph, within = app.rootGraph ?? app.graph, depth = 0) {
  for (const node of within?.nodes ?? within?._nodes ?? []) {
    if (node.subgraph === graph) return node;
    const found = node.subgraph && depth < DEEPEST ? nodeAround(graph, node.subgraph, depth + 1) : undefined;
    if (found) return found;
  }
}

/** The node whose output feeds an input, which is given by its index or name; undefined where nothing does. */
export function sourceOf(node, input, depth = 0) {
  const link = linkIn(node.graph, node.inputs?.[typeof input === "string" ? inputOf(node, input) : input]?.link);
  if (!link || depth > DEEPEST) return undefined;
  if (!comesIn(link)) return producer(node.graph.getNodeById(link.origin_id), link.origin_slot, depth);
  const around = nodeAround(node.graph);
  return around && sourceOf(around, link.origin_slot, depth + 1);
}

function producer(node, slot, depth) {
  if (node?.type === "Reroute") return sourceOf(node, 0, depth + 1);
  if (!node?.subgraph || depth > DEEPEST) return node ?? undefined;
  const link = linkIn(node.subgraph, node.subgraph.outputs?.[slot]?.linkIds?.[0]);
  if (!link) return undefined;
  if (comesIn(link)) return sourceOf(node, link.origin_slot, depth + 1);
  return producer(node.subgraph.getNodeById(link.origin_id), link.origin_slot, depth + 1);
}

/** The nodes that a node's outputs feed; a subgraph is passed through. */
export function consumersOf(node) {
  return (node.outputs ?? []).flatMap((output) => targets(node.graph, output.links));
}

function targets(graph, ids, depth = 0) {
  return (ids ?? []).map((id) => linkIn(graph, id)).filter(Boolean).flatMap((link) => {
    const { target_id: id, target_slot: slot } = link;
    if (depth > DEEPEST) return [];
    if (goesOut(link)) {
      const around = nodeAround(graph);
      return around ? targets(around.graph, around.outputs?.[slot]?.links, depth + 1) : [];
    }
    const target = graph.getNodeById(id);
    if (target?.subgraph) return targets(target.subgraph, target.subgraph.inputs?.[slot]?.linkIds, depth + 1);
    return target ? [target] : [];
  });
}
