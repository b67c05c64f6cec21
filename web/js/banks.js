// What the server says of banks, kept until something may have changed, and the requests that change them.
import { sourceOf, valueOf } from "./links.js";
import { api } from "./page.js";

const views = new Map(); // bank name -> a promise of its view
let version = 0; // grows whenever the views may be out of date

/** Grows with every change of a bank that the page knows of. */
export const banksVersion = () => version;

/** Forget everything that was read. */
export function forgetBanks() {
  version += 1;
  views.clear();
}

/** Ask the server; throws an Error with its sentence. */
export async function ask(path, query = {}) {
  return answerOf(await api.fetchApi(`/seqlora/${path}?${new URLSearchParams(query)}`, { cache: "no-store" }));
}

/** Change something on the server; throws an Error with its sentence. */
export async function change(path, values) {
  const body = JSON.stringify(values), headers = { "Content-Type": "application/json" };
  const answer = await answerOf(await api.fetchApi(`/seqlora/${path}`, { method: "POST", headers, body }));
  forgetBanks();
  return answer;
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `${response.status} ${response.statusText}`);
  return answer;
}

/** A bank with its concepts, or {problem: sentence}. */
export function readBank(name) {
  if (!views.has(name)) views.set(name, ask("bank", { bank: name }).catch((error) => ({ problem: error.message })));
  return views.get(name);
}

/** The address of a concept's thumbnail; another one after every change of the bank. */
export function thumbnail(view, concept) {
  return api.apiURL(`/seqlora/thumbnail?${new URLSearchParams({ bank: view.name, id: concept.id, v: view.generation })}`);
}

const BANK = "SEQLORA_BANK";
const MOST_NODES = 50; // that pass a bank on

/**
 * The name of the bank on a node's input "bank", by following links through loaders, trainings, reroutes and subgraphs;
 * undefined where it cannot be known before the run, null where nothing is connected.
 */
export function connectedBank(node) {
  let source = node;
  for (let passed = 0; passed < MOST_NODES; passed++) {
    const slot = source.inputs?.findIndex((input) => input.type === BANK) ?? -1;
    const before = slot < 0 ? undefined : sourceOf(source, slot);
    if (!before) return passed ? valueOf(source, "bank_name") || undefined : null;
    source = before;
  }
}

// A job may have trained, imported, removed or renamed; another program may have, while the page was in the background.
for (const event of ["execution_success", "execution_error", "execution_interrupted"])
  api.addEventListener(event, forgetBanks);
window.addEventListener("focus", forgetBanks);
