// @ts-check
/** The model: fetched, run and asked. Nothing of the page is known here. */
import { Wllama } from "./wllama.js";

/**
 * What site.json says.
 * @typedef {object} Site
 * @property {"write" | "label"} kind
 * @property {string} model the file with the weights, gzipped
 * @property {number} bytes of that file, unpacked
 * @property {number} context tokens that the model sees at once
 * @property {string} single the engine for one thread, gzipped
 * @property {string} [several] the engine for several
 * @property {number} threads that pay for this model
 * @property {string[]} [labels] in the order of the model's outputs
 * @property {"one" | "many" | "score"} [means] one label is right, or any number are, or the output is a score
 * @property {[number, number]} [ends] the tokens before and after a text that is labelled
 *
 * @typedef {object} Wish
 * @property {number} most tokens to write
 * @property {number} temperature
 * @property {AbortSignal} [signal]
 *
 * @typedef {object} Piece
 * @property {string} text that a token added, which may be none: a letter can take several
 * @property {number} tokens so far
 * @property {number} wait milliseconds until the first of them
 * @property {number} speed tokens a second since then
 */

/**
 * A blob as it was before gzip; one that a server has unpacked on its way stays.
 * @param {Blob} blob
 */
export async function gunzip(blob) {
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return blob;
  return new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

/**
 * @param {string} url
 * @param {(bytes: number) => void} tell how many bytes more have come
 * @param {string} type what the file is, whatever its server says
 */
export async function download(url, tell, type = "application/octet-stream") {
  const response = await fetch(url);
  if (!response.ok || !response.body) throw new Error(`the server has no ${url} (${response.status})`);
  /** @type {BlobPart[]} */
  const parts = [];
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    tell(part.value.length);
  }
  return new Blob([await gunzip(new Blob(parts))], { type });
}

/**
 * What a classifier's outputs say of each label.
 * @param {number[]} outputs
 * @param {Site["means"]} means
 */
export function shares(outputs, means) {
  if (means === "score") return outputs;
  if (means === "many") return outputs.map((x) => 1 / (1 + Math.exp(-x)));
  const largest = Math.max(...outputs);
  const powers = outputs.map((x) => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / sum);
}

export class Model {
  /** @param {Site} site @param {Wllama} engine @param {number} [memory] MB for weights, cache and working space */
  constructor(site, engine, memory = 0) {
    this.site = site;
    this.engine = engine;
    this.memory = memory;
  }

  /**
   * Fetch engine and weights, and start.
   * @param {Site} site
   * @param {(bytes: number) => void} tell
   */
  static async load(site, tell) {
    const threads = globalThis.crossOriginIsolated ? Math.min(site.threads, navigator.hardwareConcurrency) : 1;
    const several = threads > 1 && site.several;
    const [wasm, weights] = await Promise.all([
      download(several || site.single, tell, "application/wasm"),
      download(site.model, tell),
    ]);
    const path = URL.createObjectURL(wasm);
    let memory = 0;
    /** llama.cpp tells what it takes in its log, and nowhere else. @param {unknown} line */
    const read = (line) => { memory += Number(/ buffer size = +([\d.]+) MiB/.exec(String(line))?.[1] ?? 0); };
    const engine = new Wllama(
      { "single-thread/wllama.wasm": path, ...(several ? { "multi-thread/wllama.wasm": path } : {}) },
      { logger: { debug: read, log: read, warn: read, error: console.error } },
    );
    const settings = { n_ctx: site.context, n_threads: several ? threads : 1, embeddings: site.kind === "label" };
    await engine.loadModel([weights], settings);
    return new Model(site, engine, memory);
  }

  get threads() {
    return this.engine.getNumThreads();
  }

  /**
   * Go on with a text, a token at a time.
   * @param {string} text
   * @param {Wish} wish
   * @returns {AsyncGenerator<Piece>}
   */
  async *write(text, wish) {
    const { engine, site } = this, begun = performance.now(), letters = new TextDecoder();
    const tokens = await engine.tokenize(text, true);
    if (tokens.length === 0 || engine.mustAddBosToken()) tokens.unshift(engine.getBOS());
    const room = site.context - tokens.length;
    if (room < 1) throw new Error(`the text has ${tokens.length} tokens, and the model goes on with at most ${site.context - 1}`);
    await engine.kvClear();
    await engine.samplingInit({ temp: wish.temperature, top_k: 50, top_p: 1, min_p: 0 }, tokens);
    await engine.decode(tokens, {});
    let next = await engine.samplingSample();
    const wait = performance.now() - begun, started = performance.now();
    for (let count = 1; !engine.isTokenEOG(next.token); count++) {
      const speed = (1000 * (count - 1)) / (performance.now() - started || 1);
      yield { text: letters.decode(next.piece, { stream: true }), tokens: count, wait, speed };
      if (count >= Math.min(wish.most, room) || wish.signal?.aborted) return;
      // sent together, since the way to the engine's worker and back takes as long as a small model's step
      const accepted = engine.samplingAccept([next.token]), decoded = engine.decode([next.token], {});
      [next] = await Promise.all([engine.samplingSample(), accepted, decoded]);
    }
  }

  /**
   * What each label gets for a text, the best first, and whether the text was cut.
   * @param {string} text
   */
  async label(text) {
    const { engine, site } = this, begun = performance.now();
    const { labels = [], ends = [0, 0], means } = site;
    const tokens = await engine.tokenize(text, false), kept = tokens.slice(0, site.context - 2);
    await engine.kvClear();
    const vector = await engine.embeddings([ends[0], ...kept, ends[1]]);
    const found = shares(vector.slice(0, labels.length).map((x) => x / vector[labels.length]), means);
    return {
      labels: labels.map((name, i) => ({ name, share: found[i] })).sort((a, b) => b.share - a.share),
      tokens: kept.length + 2,
      cut: kept.length < tokens.length,
      seconds: (performance.now() - begun) / 1000,
    };
  }
}
