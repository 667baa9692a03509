// @ts-check
/** Keeps the page for when there is no network, and sends the headers without which a browser gives it one thread. */
const worker = /** @type {ServiceWorkerGlobalScope} */ (/** @type {unknown} */ (self));
const cacheName = `abridged ${worker.registration.scope}`;
const shell = ["./", "page.css", "page.js", "engine.js", "wllama.js", "site.json"];
/** A name with a digest in it: what it names never changes. */
const digested = /^(.*\/[^/]+)\.[0-9a-f]{16}\.[a-z]+\.gz$/;

worker.addEventListener("install", (event) => {
  const asked = shell.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(caches.open(cacheName).then((cache) => cache.addAll(asked)).then(() => worker.skipWaiting()));
});
worker.addEventListener("activate", (event) => event.waitUntil(worker.clients.claim()));
worker.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(worker.registration.scope)) event.respondWith(answer(event));
});

/**
 * The network's answer, which is kept, or what was kept; of what never changes, that first.
 * @param {FetchEvent} event
 */
async function answer(event) {
  const { request } = event, cache = await caches.open(cacheName);
  const stem = digested.exec(new URL(request.url).pathname)?.[1];
  const kept = stem && (await cache.match(request));
  if (kept) return alone(kept);
  try {
    const response = await fetch(request, stem ? {} : { cache: "no-cache" });  // a new export is seen at once
    if (response.ok) {
      const copy = response.clone();
      event.waitUntil(stem ? replace(cache, request, copy, stem) : cache.put(request, copy));
    }
    return alone(response);
  } catch {
    const found = await cache.match(request, { ignoreSearch: true });
    return found ? alone(found) : Response.error();
  }
}

/** Keep a file, and none of an earlier export. @param {Cache} cache @param {Request} request @param {Response} response @param {string} stem */
async function replace(cache, request, response, stem) {
  await cache.put(request, response);
  for (const old of await cache.keys()) {
    if (old.url !== request.url && digested.exec(new URL(old.url).pathname)?.[1] === stem) await cache.delete(old);
  }
}

/** Say that the page shares nothing with pages of other origins. @param {Response} response */
function alone(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
