// The text of Compose Concepts, "dog:1, cat:0.8", as seqlora_core/composition/selection.py reads it: where each entry
// stands, and edits that leave everything else as the user typed it.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)$/;
const FLOAT = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Equal for names that the bank takes for the same, except for letters that only look alike. */
export function fold(name) {
  return name.normalize("NFKC").trim().replace(/\s+/g, " ").toLowerCase();
}

/** A number as it is shown: at most some decimals, no trailing zeros. */
export function written(number, decimals = 3) {
  return String(Math.round(number * 10 ** decimals) / 10 ** decimals || 0);
}

/** The text, same length, with tags and decimal commas replaced by what they mean; and the tags as [start, end]. */
function plain(text, names) {
  const tags = [];
  let masked = text.replace(/<(\s*lora\s*:)([^<>]*)>/gi, (whole, head, inner, start) => {
    tags.push([start, start + whole.length]);
    return `,${",".repeat(head.length)}${inner},`;
  });
  masked = masked.replace(/(:\s*[+-]?\d+),(\d+)(?![\p{L}\p{N}_.])/gu, (whole, left, right) =>
    names.has(right) ? whole : `${left}.${right}`);
  return [masked, tags];
}

/** The entries of `NAME STRENGTH NAME STRENGTH` of known names; none for anything else. */
function spaced(entry, names) {
  if (names.has(fold(entry))) return [];
  const found = [];
  let name = "";
  for (const word of entry.replace(/[:=]/g, " ").trim().split(/\s+/)) {
    if (names.has(fold(name)) && NUMBER.test(word)) {
      found.push({ name, strength: Number(word) });
      name = "";
    } else name = `${name} ${word}`.trim();
  }
  return name ? [] : found;
}

function single(entry) {
  const colon = entry.indexOf(":");
  if (colon < 0) return { name: entry.trim(), strength: 1 };
  const strength = entry.slice(colon + 1).trim();
  return { name: entry.slice(0, colon).trim(), strength: FLOAT.test(strength) ? Number(strength) : NaN, typed: strength };
}

/**
 * The entries of a text in order, each {name, strength, start, end}; a strength that is no number is NaN.
 * Entries that cannot be edited one by one, such as "dog 1 cat 0.8", have no start.
 */
export function parse(text, known = []) {
  const names = new Set(known.map(fold));
  const [masked, tags] = plain(text, names);
  const entries = [];
  for (const match of masked.matchAll(/[^,\n]+/g)) {
    if (!match[0].trim()) continue;
    const several = spaced(match[0], names);
    if (several.length > 1) {
      entries.push(...several);
      continue;
    }
    let start = match.index + match[0].search(/\S/), end = match.index + match[0].trimEnd().length;
    const tag = tags.find(([from, to]) => from < start && end < to);
    if (tag) [start, end] = tag;
    if (entries.some((other) => other.end > start)) start = end = undefined; // two in one tag
    entries.push({ ...(several[0] ?? single(match[0])), start, end });
  }
  return entries;
}

const entryText = ({ name, strength, typed }) => `${name}:${Number.isNaN(strength) ? typed : strength}`;

/** The text of entries alone. */
export function write(entries) {
  return entries.map(entryText).join(", ");
}

/** Whether every entry has a place of its own, with a separator before the next one. */
const editable = (text, entries) => entries.every(({ start }, index) =>
  start !== undefined && (!index || /[,\n]/.test(text.slice(entries[index - 1].end, start))));

/** The text with another strength for one entry. */
export function setStrength(text, entries, index, strength) {
  const changed = { ...entries[index], strength };
  if (!editable(text, entries)) return write(entries.with(index, changed));
  return text.slice(0, changed.start) + entryText(changed) + text.slice(changed.end);
}

/** The text without one entry, and without the separator before it, or after the first. */
export function remove(text, entries, index) {
  const left = entries.filter((_, other) => other !== index);
  if (!editable(text, entries) || !left.length) return write(left);
  const { start, end } = entries[index];
  return index ? text.slice(0, entries[index - 1].end) + text.slice(end)
    : text.slice(0, start) + text.slice(entries[1].start);
}

/** The text with one more entry at its end, separated as the last one is. */
export function append(text, entries, name, strength) {
  const added = entryText({ name, strength });
  if (!entries.length) return added;
  if (!editable(text, entries)) return `${write(entries)}, ${added}`;
  const end = entries.at(-1).end;
  const between = entries.length > 1 ? text.slice(entries.at(-2).end, entries.at(-1).start) : ", ";
  return `${text.slice(0, end)}${between}${added}${text.slice(end).replace(/^\s*,/, "")}`;
}

/** The text with one entry moved to another place; separators stay where they are. */
export function move(text, entries, from, to) {
  const order = [...entries];
  order.splice(to, 0, ...order.splice(from, 1));
  if (!editable(text, entries)) return write(order);
  let result = "", last = 0;
  entries.forEach((entry, index) => {
    result += text.slice(last, entry.start) + text.slice(order[index].start, order[index].end);
    last = entry.end;
  });
  return result + text.slice(last);
}
