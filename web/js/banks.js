// What the server says of banks, kept until something may have changed, and the requests that change them.
import { sourceOf, valueOf } from "./links.js";
import { api, t } from "./page.js";

const views = new Map(); // bank name -> a promise of its view
let version = 0; // grows whenever the views may be out of date

/** Grows with every change of a bank that the page knows of. */
export const banksVersion = () => version;

/** Forget everything that was read. */
export function forgetBanks() {
  version += 1;
  views.clear();
  overlaps.clear();
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

/**
 * Send files, and hear how far it is: {answer: a promise as of `change`, abort: ends it}.
 * `progressed` receives the share that is sent; at 1 the server has begun to work on them.
 */
export function upload(path, query, files, progressed) {
  const request = new XMLHttpRequest(), body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  const answer = new Promise((resolve, reject) => {
    request.upload.onprogress = ({ loaded, total }) => progressed(total ? loaded / total : 0);
    request.onabort = () => reject(new DOMException("", "AbortError"));
    request.onerror = () => reject(new Error(t("import.lost")));
    request.onload = () => {
      const ok = request.status === 200, given = parsed(request.responseText);
      if (!ok) return reject(new Error(given.error ?? `${request.status} ${request.statusText}`));
      forgetBanks();
      resolve(given);
    };
  });
  request.open("POST", api.apiURL(`/seqlora/${path}?${new URLSearchParams(query)}`));
  if (api.user) request.setRequestHeader("Comfy-User", api.user);
  request.send(body);
  return { answer, abort: () => request.abort() };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
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

const overlaps = new Map(); // bank name -> a promise of its measured overlaps

/** How far the concepts of a bank overlap (see nodes/host/routes.py), or {problem: sentence}. */
export function readOverlaps(name) {
  if (!overlaps.has(name)) overlaps.set(name, ask("overlaps", { bank: name }).catch((error) => ({ problem: error.message })));
  return overlaps.get(name);
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
