/** What engine.js does by itself, with an engine that plays back a script. `test_web_page.py` runs it beside a stub. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { Model, gunzip, shares } from "./engine.js";

/** An engine that writes the given bytes, a token each, and then ends. @param {number[][]} pieces @param {object} more */
function playing(pieces, more = {}) {
  const calls = [];
  let place = 0;
  const engine = {
    tokenize: async () => [5, 6],
    mustAddBosToken: () => false,
    getBOS: () => 1,
    isTokenEOG: (token) => token === pieces.length,
    kvClear: async () => calls.push("clear"),
    samplingInit: async (settings) => calls.push(settings),
    samplingAccept: async (tokens) => calls.push(["accept", ...tokens]),
    decode: async (tokens) => calls.push(["decode", ...tokens]),
    samplingSample: async () => ({ token: place, piece: Uint8Array.from(pieces[place++] ?? []) }),
    ...more,
  };
  return { calls, model: new Model({ kind: "write", context: 8, threads: 1 }, engine) };
}

async function all(pieces) {
  const found = [];
  for await (const piece of pieces) found.push(piece);
  return found;
}

test("gunzip unpacks what is packed and leaves what a server has unpacked", async () => {
  for (const content of [gzipSync("weights"), Buffer.from("weights"), Buffer.from("")]) {
    const plain = await (await gunzip(new Blob([content]))).text();
    assert.equal(plain, content.length ? "weights" : "");
  }
});

test("shares are probabilities, of one label or of each, or the score itself", () => {
  assert.deepEqual(shares([1000, 1000], "one"), [0.5, 0.5]);
  assert.deepEqual(shares([0, Infinity], "many"), [0.5, 1]);
  assert.deepEqual(shares([-3], "score"), [-3]);
});

test("a letter may take several tokens, and the end of a text is not written", async () => {
  const { model, calls } = playing([[0x61], [0xc3], [0xa9]]);
  const found = await all(model.write("b", { most: 100, temperature: 0.5 }));
  assert.deepEqual(found.map(({ text }) => text), ["a", "", "é"]);
  assert.deepEqual(found.map(({ tokens }) => tokens), [1, 2, 3]);
  assert.equal(calls[1].temp, 0.5);
});

test("a token is accepted and read before the next is drawn", async () => {
  const order = [];
  const { model } = playing([[0x61], [0x62]], {
    samplingAccept: async () => order.push("accept"),
    decode: async () => order.push("decode"),
    samplingSample: async () => (order.push("sample"), { token: order.length > 4 ? 2 : 0, piece: Uint8Array.of(0x61) }),
  });
  await all(model.write("b", { most: 5, temperature: 0 }));
  assert.deepEqual(order, ["decode", "sample", "accept", "decode", "sample"]);
});

test("it ends where it is asked to, where the context ends, and where it is stopped", async () => {
  const long = Array(50).fill([0x61]);
  assert.equal((await all(playing(long).model.write("b", { most: 3, temperature: 0 }))).length, 3);
  assert.equal((await all(playing(long).model.write("b", { most: 100, temperature: 0 }))).length, 6);
  const stop = new AbortController();
  let count = 0;
  for await (const _ of playing(long).model.write("b", { most: 100, temperature: 0, signal: stop.signal })) {
    if (++count === 2) stop.abort();
  }
  assert.equal(count, 2);
});

test("a text that fills the context is refused", async () => {
  const { model } = playing([], { tokenize: async () => Array(8).fill(5) });
  await assert.rejects(all(model.write("b", { most: 1, temperature: 0 })), /8 tokens.*at most 7/);
});

test("a text is labelled between its ends, cut to the context, and its outputs set right by the known one", async () => {
  const site = { kind: "label", context: 4, labels: ["dry", "wet"], means: "one", ends: [101, 102] };
  let read = [];
  const engine = {
    tokenize: async () => [1, 2, 3],
    kvClear: async () => {},
    embeddings: async (tokens) => { read = tokens; return [1, 3, 2, 0].map((x) => x / 7); },
  };
  const { labels, cut } = await new Model(site, engine).label("b");
  assert.deepEqual(read, [101, 1, 2, 102]);
  assert.ok(cut);
  assert.deepEqual(labels.map(({ name }) => name), ["wet", "dry"]);
  assert.ok(Math.abs(labels[0].share - 1 / (1 + Math.exp(-1))) < 1e-9);
});
