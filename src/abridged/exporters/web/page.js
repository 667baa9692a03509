// @ts-check
/** The page: a form, what the model answers, and what it takes. */
import { Model } from "./engine.js";

/** @template {HTMLElement} [T=HTMLElement] @param {string} id */
const at = (id) => /** @type {T} */ (document.getElementById(id));
const form = at("form"), answer = at("answer"), status = at("status");
const box = /** @type {HTMLTextAreaElement} */ (at("text"));
const run = /** @type {HTMLButtonElement} */ (at("run")), stop = /** @type {HTMLButtonElement | null} */ (at("stop"));
const progress = /** @type {HTMLProgressElement} */ (at("progress"));

/** @param {number} bytes */
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

/** @param {unknown} error */
const say = (error) => { status.textContent = `It did not work: ${error instanceof Error ? error.message : error}`; };

/**
 * Let the service worker keep the page for when there is no network. It also says to the browser that no other page has
 * a hand in this one, without which there is one thread.
 */
async function keep() {
  if (!("serviceWorker" in navigator)) return false;
  try {
    await navigator.serviceWorker.register("service-worker.js");
    await new Promise((go) => {
      if (navigator.serviceWorker.controller) go(null);
      navigator.serviceWorker.addEventListener("controllerchange", go, { once: true });
      setTimeout(go, 5000);  // one that cannot keep what it must never comes
    });
  } catch {  // the browser forbids it here: no https, or a private window
    return false;
  }
  return Boolean(navigator.serviceWorker.controller);
}

/** @param {Model} model @param {AbortSignal} signal */
async function write(model, signal) {
  const most = Number(/** @type {HTMLInputElement} */ (at("most")).value);
  const temperature = Number(/** @type {HTMLInputElement} */ (at("temperature")).value);
  const given = document.createElement("span"), written = document.createTextNode("");
  given.className = "given";
  given.textContent = box.value;
  answer.replaceChildren(given, written);
  let last = { text: "", tokens: 0, wait: 0, speed: 0 };
  for await (last of model.write(box.value, { most, temperature, signal })) {
    written.appendData(last.text);
    at("speed").textContent = `${last.speed.toFixed(0)} tokens/s, first after ${last.wait.toFixed(0)} ms`;
  }
  status.textContent = last.tokens ? `${last.tokens} tokens are written.` : "The model takes the text to be at its end.";
}

/** @param {Model} model */
async function label(model) {
  const found = await model.label(box.value), score = model.site.means === "score";
  answer.replaceChildren(...found.labels.map(({ name, share }) => {
    const item = document.createElement("li"), number = document.createElement("span");
    number.textContent = score ? share.toFixed(3) : `${(100 * share).toFixed(1)} %`;
    item.append(name, number);
    if (!score) {
      const bar = document.createElement("meter");
      bar.value = share;
      bar.setAttribute("aria-label", name);
      item.append(bar);
    }
    return item;
  }));
  const best = found.labels[0], words = score ? best.share.toFixed(3) : `${best.name}, ${(100 * best.share).toFixed(1)} %`;
  status.textContent = `${words}${found.cut ? `; the model read the first ${found.tokens} tokens` : ""}`;
  at("speed").textContent = `${(found.tokens / found.seconds).toFixed(0)} tokens/s, ${(1000 * found.seconds).toFixed(0)} ms`;
}

/** @param {Model} model */
function listen(model) {
  /** @type {AbortController | null} */
  let running = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    if (stop) stop.disabled = false;
    answer.setAttribute("aria-busy", "true");
    status.textContent = "Working …";
    try {
      await (model.site.kind === "write" ? write(model, running.signal) : label(model));
    } catch (error) {
      say(error);
    }
    answer.removeAttribute("aria-busy");
    running = null;
    if (document.activeElement === stop) run.focus();
    if (stop) stop.disabled = true;
  });
  stop?.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) /** @type {HTMLFormElement} */ (form).requestSubmit();
  });
}

async function start() {
  /** @type {import("./engine.js").Site & {sizes: Record<string, number>}} */
  const site = await (await fetch("site.json", { cache: "no-cache" })).json();
  const kept = await keep();
  if (site.threads > 1 && kept && !globalThis.crossOriginIsolated && !sessionStorage.getItem("again")) {
    sessionStorage.setItem("again", "1");  // once: what the service worker says counts from the next load on
    location.reload();
    return;
  }
  at("offline").textContent = kept ? "works from now on" : "not here: the browser keeps pages of https only";
  const wanted = site.sizes[site.model] + site.sizes[site.single];
  at("size").textContent = `${megabytes(wanted)} to fetch, ${megabytes(site.bytes)} of weights`;
  let fetched = 0;
  const model = await Model.load(site, (bytes) => { progress.value = Math.min(1, (fetched += bytes) / wanted); });
  progress.hidden = true;
  run.disabled = false;
  status.textContent = `Ready, ${model.threads === 1 ? "with one thread" : `with ${model.threads} threads`}.`;
  listen(model);
  at("memory").textContent = `${model.memory.toFixed(1)} MB`;
  box.focus();
}

start().catch((error) => { progress.hidden = true; say(error); });
