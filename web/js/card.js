// The card that appears over the page while a concept's name has the pointer or the keyboard's focus.
import { thumbnail } from "./banks.js";
import { element, t } from "./page.js";

const GAP = 8; // px
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

function showCard(anchor, view, concept) {
  hideCard();
  const rows = facts(concept).flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]);
  card = element("div", { className: "seqlora seqlora-card", id: "seqlora-card", role: "tooltip" });
  if (concept.thumbnail) card.append(element("img", { src: thumbnail(view, concept), alt: "" }));
  card.append(element("strong", {}, concept.name), element("dl", {}, ...rows));
  document.body.append(card);
  described = anchor;
  anchor.setAttribute("aria-describedby", card.id);
  const at = anchor.getBoundingClientRect(), own = card.getBoundingClientRect();
  const left = at.right + GAP + own.width < innerWidth ? at.right + GAP : at.left - GAP - own.width;
  card.style.left = `${Math.max(GAP, left)}px`;
  card.style.top = `${Math.max(GAP, Math.min(at.top, innerHeight - own.height - GAP))}px`;
}

/** Show a concept's card while an element has the pointer or the focus. */
export function withCard(anchor, view, concept) {
  for (const event of ["pointerenter", "focus"]) anchor.addEventListener(event, () => showCard(anchor, view, concept));
  for (const event of ["pointerleave", "blur"]) anchor.addEventListener(event, hideCard);
  anchor.addEventListener("keydown", (event) => { if (event.key === "Escape") hideCard(); });
  return anchor;
}
