"use strict";
// The page: what is to be seen, and when the worker is asked for it.

const STILL_AFTER = 150;  // milliseconds without a change until the full picture follows
const LARGEST_SEED = 4294967295;
const PROVIDERS = {
  webgpu: "WebGPU",
  wasm: "WebAssembly"
};  // ?run= chooses one
const NEEDS_SERVER = "This page reads files beside it, which browsers allow only from a server." +
    " Run: python -m http.server --directory (the folder of this page), then open" +
    " http://127.0.0.1:8000";

class Heads {
  constructor(scene, worker, elements) {
    Object.assign(this, {scene, worker, elements});
    this.version = 0;   // of what is to be seen
    this.shown = null;  // version and kind of the last picture
    this.changed = 0;
    this.isHeld = this.isAsking = false;
    elements.canvas.width = elements.canvas.height = scene.resolution;
    this.orbit = new Orbit(scene.cameras, () => this.orbit && this.change());  // it moves at once
    this.drawFirst();
    worker.onmessage = ({data}) => this.take(data);
    worker.onerror = (event) => this.complain(event.message || "The worker cannot be loaded.");
    this.change();
  }

  change() {
    this.version++;
    this.changed = performance.now();
    this.ask();
  }

  hold(isHeld) {
    this.isHeld = isHeld;
    this.change();
  }

  // The identity that the form describes; null while a number in it is none.
  head() {
    const {form, seed, psi, share} = this.elements;
    if (!form.checkValidity()) return null;
    const layers = this.scene.ws[0];
    const middle = Math.ceil(layers / 2);
    const [first, last] = {all: [0, layers], coarse: [0, middle], fine: [
                             middle, layers
                           ]}[this.elements["mix-layers"].value];
    const mixSeed = Number(this.elements["mix-seed"].value);
    const numbers = {seed: Number(seed.value), mixSeed, first, last};
    return {...numbers, psi: Number(psi.value), share: Number(share.value)};
  }

  // Asks for a picture unless one is being made, quickly while the head moves.
  ask() {
    const head = this.head();
    if (this.isAsking || !head) return;
    const wait = this.changed + STILL_AFTER - performance.now();
    const isQuick = this.shown !== null && (this.isHeld || wait > 0);
    if (this.shown?.version === this.version && this.shown.isQuick === isQuick) {
      if (isQuick && !this.isHeld) setTimeout(() => this.ask(), wait + 1);
      return;
    }
    this.isAsking = true;
    this.asked = {version: this.version, isQuick};
    this.worker.postMessage(
        {head, camera: cameraLabel(orbitCamera(this.scene.cameras, this.orbit)), isQuick});
  }

  take({error, side, pixels, milliseconds, provider}) {
    this.isAsking = false;
    if (error) return this.complain(error);
    this.draw(side, pixels);
    this.shown = this.asked;
    const speed = `${side} pixels, ${Math.round(milliseconds)} ms per view`;
    this.elements.status.textContent = `${speed}, ${PROVIDERS[provider]}`;
    this.ask();
  }

  // The picture that came with the page stands until the first one that is made here.
  async drawFirst() {
    const picture = Object.assign(new Image(), {src: this.scene.first});
    await picture.decode();
    if (this.shown === null) this.elements.canvas.getContext("2d").drawImage(picture, 0, 0);
  }

  async draw(side, pixels) {
    const {canvas} = this.elements;
    const picture = new ImageData(pixels, side, side);
    const context = canvas.getContext("2d");
    if (side === canvas.width) return context.putImageData(picture, 0, 0);
    context.drawImage(await createImageBitmap(picture), 0, 0, canvas.width, canvas.height);
  }

  complain(text) {
    this.elements.message.textContent = text;
    this.elements.message.hidden = false;
    this.elements.status.textContent = "";
  }

  // Whether all of what is to be seen is shown in full.
  isComplete() {
    return this.shown?.version === this.version && !this.shown.isQuick;
  }

  save() {
    const {canvas, seed} = this.elements;
    canvas.toBlob((blob) => {
      const name = `seed-${seed.value}.png`;
      const link = Object.assign(
          document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
}

function connect(heads) {
  const {elements, orbit} = heads;
  attachControls(elements.canvas, orbit, (isHeld) => heads.hold(isHeld));
  elements.form.addEventListener("submit", (event) => event.preventDefault());
  elements.form.addEventListener("input", () => {
    for (const name of ["psi", "share"])
      elements[`${name}-value`].textContent = Number(elements[name].value).toFixed(2);
    heads.change();
  });
  for (const name of ["", "mix-"])
    elements[`${name}random`].addEventListener("click", () => {
      elements[`${name}seed`].value = Math.floor(Math.random() * (LARGEST_SEED + 1));
      heads.change();
    });
  elements.reset.addEventListener("click", () => orbit.reset());
  elements.save.addEventListener("click", () => heads.save());
}

function main() {
  const elements = Object.fromEntries(
      [...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
  const scene = JSON.parse(elements.scene.textContent);
  if (location.protocol === "file:") {
    elements.message.textContent = NEEDS_SERVER;
    elements.message.hidden = false;
    elements.status.textContent = "";
    return;
  }
  const worker = new Worker("worker.js");
  const provider = new URLSearchParams(location.search).get("run");
  worker.postMessage({scene, provider: provider in PROVIDERS ? provider : null});
  window.heads = new Heads(scene, worker, elements);
  connect(window.heads);
}

main();
