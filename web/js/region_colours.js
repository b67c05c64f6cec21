// The colours of the region editor: one per concept, the same in every region that is about it, whatever their order.
import { fold, parse } from "./selection.js";

const COLOURS = ["#f2a65a", "#6cb6ff", "#8ddb8c", "#f69ac6", "#d9c24a", "#b8a1ff", "#5fd3c9", "#ff9c8f"]; // for dark text
const NEUTRAL = "#c8c8c8"; // of regions without a concept, for dark text

/** Where a word stands in a prompt on its own, or -1. */
function placeOf(word, prompt) {
  const escaped = fold(word).replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return escaped ? fold(prompt).search(new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?![\\p{L}\\p{N}_])`, "u")) : -1;
}

/**
 * The folded name of the concept that a region is about; undefined if there is none: the first that acts of its list,
 * and without a list, the first whose word its prompt names.  `known` are the concepts of the bank.
 */
export function conceptOf({ concepts, prompt }, known) {
  if (concepts.trim()) {
    const acting = parse(concepts, known.map(({ name }) => name)).find(({ strength }) => strength !== 0);
    return acting && fold(acting.name);
  }
  const named = known.map(({ name, token }) => [placeOf(token, prompt), fold(name)]).filter(([place]) => place >= 0);
  return named.sort(([a], [b]) => a - b)[0]?.[1];
}

/** A number of a name that is the same in every session. */
function numberOf(name) {
  return [...name].reduce((sum, letter) => (31 * sum + letter.codePointAt(0)) % 65521, 7);
}

/** The colour of each folded name of a list; different names share one only where there are more names than colours. */
export function coloursOf(names) {
  const colours = new Map();
  for (const name of [...new Set(names)].filter(Boolean).sort()) {
    const first = numberOf(name), taken = [...colours.values()];
    const choice = COLOURS.map((_, index) => COLOURS[(first + index) % COLOURS.length]);
    colours.set(name, choice.find((colour) => !taken.includes(colour)) ?? choice[0]);
  }
  return names.map((name) => colours.get(name) ?? NEUTRAL);
}
