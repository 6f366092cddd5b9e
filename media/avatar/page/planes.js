"use strict";
// From the page's text to textures: the inverse of planes.py.

function bytesFromBase64(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Undoes the prediction left + above - above left in place, modulo 256. `codes` holds pictures of
// `side` x `side`, one after the other.
function unpredict(codes, side) {
  for (let start = 0; start < codes.length; start += side * side) {
    for (let row = 0; row < side; row++) {
      let rest = 0;
      for (let i = start + row * side, end = i + side; i < end; i++) {
        rest += codes[i];
        codes[i] = row > 0 ? codes[i - side] + rest : rest;
      }
    }
  }
  return codes;
}

// Texels of four channels, a layer for every four channels of every plane, with a border one texel
// wide that holds the codes of zero.
function layTexels(codes, zero, side, channels) {
  const wide = side + 2;
  const layers = (3 * channels) / 4;
  const texels = new Uint8Array(layers * wide * wide * 4);
  for (let channel = 0; channel < 3 * channels; channel++) {
    const target = (channel >> 2) * wide * wide * 4 + (channel & 3);
    for (let i = 0; i < wide * wide; i++) texels[target + 4 * i] = zero[channel];
    for (let row = 0; row < side; row++) {
      const from = (channel * side + row) * side;
      const to = target + 4 * ((row + 1) * wide + 1);
      for (let column = 0; column < side; column++) texels[to + 4 * column] = codes[from + column];
    }
  }
  return texels;
}

async function loadTexels(text, head, planes) {
  const codes = unpredict(await inflate(bytesFromBase64(text)), planes.resolution);
  return layTexels(codes, head.zero, planes.resolution, planes.channels);
}
