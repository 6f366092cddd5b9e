"use strict";
// Runs the graphs, beside the page so that it stays awake. A message is {scene} at the start, then
// what is to be seen; an answer has the pixels, or the error.

importScripts("runtime/ort.wasm.min.js", "latents.js");
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;

let scene = null;
const sessions = {};
const kept = {};  // the last result of each step, by what it was made of

async function session(name) {
  sessions[name] ??= ort.InferenceSession.create(`${name}.onnx`, {executionProviders: ["wasm"]});
  return sessions[name];
}

async function run(name, inputs) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(
      ([key, {data, shape}]) => [key, new ort.Tensor("float32", data, shape)]));
  const results = await (await session(name)).run(feeds);
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
  const started = performance.now();
  const seen = await run(isQuick ? "quick" : "image", {planes, ws, c: label(camera)});
  return {...toPixels(seen.image), milliseconds: performance.now() - started};
}

self.onmessage = async ({data}) => {
  if (data.scene) {
    scene = data.scene;
    return;
  }
  try {
    self.postMessage(await answer(data));
  } catch (error) {
    self.postMessage({error: error.message ?? String(error)});
  }
};
