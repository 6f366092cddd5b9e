"use strict";
// Runs the graphs, beside the page so that it stays awake. A message is {scene, provider} at the
// start, then what is to be seen; an answer has the pixels, or the error.

importScripts("latents.js");

const FIRST_GRAPHS = ["mapping", "synthesis", "image"];  // of the first picture
let scene = null;
let started = null;            // a promise of the provider
let last = Promise.resolve();  // of what ort was asked for
const sessions = {};
const kept = {};  // the last result of each step, by what it was made of

// What runs the graphs: the one that the address asks for, else WebGPU where the browser has a
// graphics processor, and does not imitate one, else WebAssembly.
async function choose(asked) {
  if (asked) return asked;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

async function start(asked) {
  const provider = await choose(asked);
  importScripts(`runtime/ort.${provider}.min.js`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;
  // all are fetched at once; what fails is told when it is needed
  for (const name of FIRST_GRAPHS) session(name, provider).catch(() => {});
  return provider;
}

// The graphs' files come at once.
function session(name, provider) {
  const forceCpuNodeNames = scene.cpu_nodes[`${name}.onnx`];
  const options = {executionProviders: [{name: provider, forceCpuNodeNames}]};
  sessions[name] ??=
      graph(name).then((file) => inTurn(() => ort.InferenceSession.create(file, options)));
  return sessions[name];
}

// WebGPU does one thing at a time, and fails if asked for two.
function inTurn(task) {
  const done = last.then(task);
  last = done.catch(() => {});
  return done;
}

async function graph(name) {
  const answer = await fetch(`${name}.onnx`);
  if (!answer.ok) throw new Error(`${name}.onnx cannot be loaded: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function run(name, inputs) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(
      ([key, {data, shape}]) => [key, new ort.Tensor("float32", data, shape)]));
  const found = await session(name, await started);
  const results = await inTurn(() => found.run(feeds));
  return Object.fromEntries(
      Object.entries(results).map(([key, {data, dims}]) => [key, {data, shape: dims}]));
}

async function once(step, key, make) {
  if (kept[step]?.key !== key) kept[step] = {key, value: await make()};
  return kept[step].value;
}

function label(numbers) {
  return {data: Float32Array.from(numbers), shape: [1, 25]};
}

async function seedWs(step, seed) {
  return once(step, `${seed}`, async () => {
    const z = {data: seedLatent(seed, scene.z_dim), shape: [1, scene.z_dim]};
    return (await run("mapping", {z, c: label(scene.conditioning)})).ws.data;
  });
}

async function identity({seed, mixSeed, ...options}) {
  return once("identity", JSON.stringify({seed, mixSeed, ...options}), async () => {
    const one = await seedWs("one", seed);
    const other = options.share > 0 ? await seedWs("other", mixSeed) : one;
    const ws = {data: blend(one, other, options, scene.w_avg), shape: [1, ...scene.ws]};
    return {ws, planes: (await run("synthesis", {ws})).planes};
  });
}

// Pixels (side x side, four bytes) of an image (1, 3, side, side) in [-1, 1].
function toPixels({data, shape}) {
  const size = shape[2] * shape[3];
  const pixels = new Uint8ClampedArray(4 * size).fill(255);  // rounds and clamps
  for (let i = 0; i < size; i++)
    for (let channel = 0; channel < 3; channel++)
      pixels[4 * i + channel] = (data[channel * size + i] + 1) * 127.5;
  return {side: shape[2], pixels};
}

async function answer({head, camera, isQuick}) {
  const {ws, planes} = await identity(head);
  const began = performance.now();
  const seen = await run(isQuick ? "quick" : "image", {planes, ws, c: label(camera)});
  return {
    ...toPixels(seen.image),
    milliseconds: performance.now() - began,
    provider: await started
  };
}

self.onmessage = async ({data}) => {
  if (data.scene) {
    scene = data.scene;
    started = start(data.provider);
    return;
  }
  try {
    await started;  // ort's functions are there from now on
    self.postMessage(await answer(data));
  } catch (error) {
    self.postMessage({error: error.message ?? String(error)});
  }
};
