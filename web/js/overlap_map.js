// How far the concepts of a bank overlap: a square per pair, and a sentence for each pair that is not orthogonal.
import { element, t } from "./page.js";

const MOST_SENTENCES = 20;

/** The elements that show measured overlaps; `pairs` are [index, index, overlap]. */
export function overlapMap({ names, pairs, limit, problems }) {
  const value = new Map(pairs.flatMap(([a, b, overlap]) => [[`${a} ${b}`, overlap], [`${b} ${a}`, overlap]]));
  const square = (row, column) => {
    const overlap = row === column ? 1 : value.get(`${row} ${column}`) ?? 0;
    // White is orthogonal, black the same; the root lets a small overlap be seen.
    const cell = element("span", { title: `${names[row]} - ${names[column]}: ${overlap.toExponential(1)}` });
    cell.style.background = `hsl(0 0% ${100 - 100 * Math.sqrt(overlap > limit ? overlap : 0)}%)`;
    return cell;
  };
  const squares = names.flatMap((_, row) => names.map((_, column) => square(row, column)));
  const map = element("div", { className: "seqlora-map", role: "img", "aria-label": t("browser.map") }, ...squares);
  map.style.gridTemplateColumns = `repeat(${names.length}, 1fr)`;
  const loud = pairs.filter(([, , overlap]) => overlap > limit).sort((a, b) => b[2] - a[2]);
  const sentences = loud.slice(0, MOST_SENTENCES).map(([a, b, overlap]) =>
    t("browser.pair", { a: names[a], b: names[b], overlap: overlap.toPrecision(2) }));
  return [map, ...[...problems, ...(loud.length ? sentences : [t("browser.orthogonal")])].map((text) => element("div", { className: "seqlora-hint" }, text))];
}
