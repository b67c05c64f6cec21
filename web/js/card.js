// The card that appears over the page while a concept's name has the pointer or the keyboard's focus.
import { readOverlaps, thumbnail } from "./banks.js";
import { element, t } from "./page.js";

const GAP = 8; // px
const MOST_OVERLAPS = 3;
let card = null, described = null; // the card, and the element that it is about

/** The facts about a concept as [label, value]. */
export function facts(concept) {
  const day = new Date(concept.created);
  return [
    [t("card.words"), concept.words],
    [t("card.class"), concept.class_word],
    [t("card.trained"), Number.isNaN(day.getTime()) ? concept.created : day.toLocaleString()],
    [t("card.method"), `${concept.source || concept.method}, ${t("card.rank", { rank: concept.rank })}`],
    [t("card.loss"), concept.final_loss === null ? t("card.unknown") : concept.final_loss.toFixed(4)],
  ];
}

/** Take the card away. */
export function hideCard() {
  card?.remove();
  described?.removeAttribute("aria-describedby");
  card = described = null;
}

/** How far a concept overlaps others, by name: those that it is not orthogonal to, most first. */
export function overlapText({ names, pairs, limit }, own, others) {
  const at = names.indexOf(own);
  const found = pairs.filter(([a, b]) => (a === at && others.includes(names[b])) || (b === at && others.includes(names[a])))
    .map(([a, b, overlap]) => [names[a === at ? b : a], overlap]);
  const loud = found.filter(([, overlap]) => overlap > limit).sort((a, b) => b[1] - a[1]);
  const shown = loud.slice(0, MOST_OVERLAPS).map(([name, overlap]) => t("card.overlaps.pair", { name, overlap: overlap.toPrecision(2) }));
  if (loud.length > MOST_OVERLAPS) shown.push(t("card.overlaps.more", { count: loud.length - MOST_OVERLAPS }));
  return loud.length ? shown.join(", ") : t("card.overlaps.none", { count: found.length });
}

/** Add the row of overlaps when they are measured, if the card is still there by then. */
async function addOverlaps(list, view, concept, others) {
  const measured = await readOverlaps(view.name);
  if (measured.problem || !list.isConnected) return;
  list.append(element("dt", {}, t("card.overlaps")), element("dd", {}, overlapText(measured, concept.name, others)));
}

function showCard(anchor, view, concept, others) {
  hideCard();
  const rows = facts(concept).flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]);
  const list = element("dl", {}, ...rows);
  card = element("div", { className: "seqlora seqlora-card", id: "seqlora-card", role: "tooltip" });
  if (concept.thumbnail) card.append(element("img", { src: thumbnail(view, concept), alt: "" }));
  card.append(element("strong", {}, concept.name), list);
  document.body.append(card);
  described = anchor;
  anchor.setAttribute("aria-describedby", card.id);
  if (others.length) addOverlaps(list, view, concept, others);
  const at = anchor.getBoundingClientRect(), own = card.getBoundingClientRect();
  const left = at.right + GAP + own.width < innerWidth ? at.right + GAP : at.left - GAP - own.width;
  card.style.left = `${Math.max(GAP, left)}px`;
  card.style.top = `${Math.max(GAP, Math.min(at.top, innerHeight - own.height - GAP))}px`;
}

/** Show a concept's card while an element has the pointer or the focus; `others` gives names to compare it with. */
export function withCard(anchor, view, concept, others = () => []) {
  for (const event of ["pointerenter", "focus"]) anchor.addEventListener(event, () => showCard(anchor, view, concept, others()));
  for (const event of ["pointerleave", "blur"]) anchor.addEventListener(event, hideCard);
  anchor.addEventListener("keydown", (event) => { if (event.key === "Escape") hideCard(); });
  return anchor;
}
