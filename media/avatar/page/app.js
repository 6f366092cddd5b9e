"use strict";
// The page: what is shown, how large, and when it is drawn.

const FRAME_SECONDS = 0.03;  // a picture may take so long while something moves ...
const BAND_SECONDS = 0.1;    // ... and a band of rows of the full picture afterwards
const STILL_SECONDS =
    4;  // for all of it; without a graphics processor it has fewer pixels than the screen
const STILL_AFTER = 150;   // milliseconds without a change
const MOST_PIXELS = 1024;  // a side
const FEWEST_PIXELS = 48;
const SWING_SECONDS = 6;

class Page {
  constructor(scene, renderer, elements) {
    Object.assign(this, {scene, renderer, elements});
    this.view = "image";
    this.head = -1;
    this.isHeld = false;
    this.changed = 0;  // when something last changed; what is drawn later is still
    this.frame = 0;
    this.swing = null;
    this.orbit = new Orbit(scene.cameras, () => this.change());
  }

  // ------------------------------------------------------------------------------------------
  // what is shown

  async showHead(index) {
    const head = this.scene.heads[index];
    const text = document.getElementById(`planes-${index}`).textContent;
    this.wanted = index;
    const texels = await loadTexels(text, head, this.scene.planes);
    if (this.wanted !== index) return;  // another was chosen meanwhile
    this.renderer.setHead(head, texels);
    this.head = index;
    for (const [i, button] of [...this.elements.heads.children].entries())
      button.setAttribute("aria-pressed", i === index);
    this.change();
  }

  showView(view) {
    this.view = view;
    this.elements.depth.setAttribute("aria-pressed", view === "depth");
    this.change();
  }

  // ------------------------------------------------------------------------------------------
  // when it is drawn

  change() {
    this.changed = performance.now();
    this.full = null;
    this.schedule();
  }

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.draw(now));
  }

  draw(now) {
    this.frame = 0;
    if (this.head < 0 || this.renderer.gl.isContextLost()) return;
    if (this.swing !== null) this.swingOn(now);
    const isMoving =
        this.isHeld || this.swing !== null || performance.now() - this.changed < STILL_AFTER;
    if (isMoving) {
      if (this.drawnChange !== this.changed) this.drawQuickly();
      this.schedule();
    } else if (!this.drawBand()) {
      this.schedule();
    }
  }

  drawQuickly() {
    const size = this.affordable(FRAME_SECONDS, FEWEST_PIXELS);
    const target = this.renderer.target("quick", size);
    this.renderer.drawRows(target, this.camera(), this.view, 0, size);
    this.renderer.show(target);
    this.drawnChange = this.changed;
  }

  // Draws some rows of the full picture; true when it is complete and shown.
  drawBand() {
    if (!this.full)
      this.full = {
        target: this.renderer.target(
            "full", this.affordable(STILL_SECONDS, this.scene.rendering.resolution)),
        row: 0
      };
    const {target, row} = this.full;
    if (row < target.size) {
      const count = Math.min(this.renderer.rowsIn(BAND_SECONDS, target.size), target.size - row);
      this.renderer.drawRows(target, this.camera(), this.view, row, count);
      this.full.row += count;
      if (this.full.row < target.size) return false;
      this.elements.canvas.dataset.size = target.size;  // what is seen now is complete
      this.saveAddress();
    }
    this.renderer.show(target);
    return true;
  }

  // How many pixels a side a picture may have that is drawn in so many seconds: at least `fewest`,
  // at most what the canvas shows.
  affordable(seconds, fewest) {
    const side = Math.floor(Math.sqrt(seconds / this.renderer.secondsPerPixel) / 16) * 16;
    return Math.min(this.fitCanvas(), Math.max(fewest, side));
  }

  // Gives the canvas as many pixels as it covers on the screen; returns them.
  fitCanvas() {
    const canvas = this.elements.canvas;
    const side = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
    const size = clamp(side, FEWEST_PIXELS, MOST_PIXELS);
    if (canvas.width !== size) canvas.width = canvas.height = size;
    return size;
  }

  camera() {
    return orbitCamera(this.scene.cameras, this.orbit);
  }

  hold(isHeld) {
    this.isHeld = isHeld;
    this.stopSwinging();
    this.change();
  }

  // ------------------------------------------------------------------------------------------
  // turning by itself

  startSwinging() {
    this.swing = {start: performance.now(), yaw: this.orbit.yaw};
    this.elements.turn.setAttribute("aria-pressed", true);
    this.change();
  }

  stopSwinging() {
    this.swing = null;
    this.elements.turn.setAttribute("aria-pressed", false);
  }

  swingOn(now) {
    const phase = ((now - this.swing.start) / 1000 / SWING_SECONDS) * 2 * Math.PI;
    const [low, high] = this.scene.cameras.yaw_range;
    const isAround = high - low > 6.28;
    this.orbit.move({
      yaw: isAround ? this.swing.yaw + phase : this.swing.yaw + 0.5 * (high - low) * Math.sin(phase)
    });
  }

  // ------------------------------------------------------------------------------------------
  // addresses, pictures

  saveAddress() {
    const {yaw, pitch, zoom, shift} = this.orbit;
    const degrees = (x) => ((x * 180) / Math.PI).toFixed(1);
    const parts = {
      head: this.head,
      yaw: degrees(yaw),
      pitch: degrees(pitch),
      zoom: zoom.toFixed(2),
      view: this.view
    };
    if (shift.some((x) => x !== 0)) parts.shift = shift.map((x) => x.toFixed(3)).join(",");
    const address =
        "#" + Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&");
    try {
      history.replaceState(null, "", address);
    } catch {
      // Some browsers count these; the address then stays as it was.
    }
  }

  // Goes where an address points; what it does not tell, or tells wrongly, stays.
  async followAddress(address) {
    const told = new URLSearchParams(address.replace(/^#/, ""));
    const number = (name) =>
        (told.get(name) === null || told.get(name).trim() === "" ? NaN : Number(told.get(name)));
    const change = {};
    for (const name of ["yaw", "pitch"])
      if (Number.isFinite(number(name))) change[name] = (number(name) * Math.PI) / 180;
    if (Number.isFinite(number("zoom"))) change.zoom = number("zoom");
    const shift = (told.get("shift") ?? "").split(",").map(Number);
    if (shift.length === 2 && shift.every(Number.isFinite)) change.shift = shift;
    this.showView(told.get("view") === "depth" ? "depth" : "image");
    const head = number("head");
    await this.showHead(
        Number.isInteger(head) && head >= 0 && head < this.scene.heads.length ? head :
                                                                                (this.wanted ?? 0));
    this.orbit.move(change);
  }

  // The shown head from any camera, for other programs: pixels of four bytes, rows from the top.
  picture({label, size = this.scene.rendering.resolution, view = this.view} = {}) {
    const target = this.renderer.target("picture", size);
    const camera = label ? labelCamera(label) : this.camera();
    for (let row = 0; row < size;) {
      const count = Math.min(this.renderer.rowsIn(BAND_SECONDS, size), size - row);
      this.renderer.drawRows(target, camera, view, row, count);
      row += count;
    }
    return {size, pixels: this.renderer.pixels(target)};
  }

  savePicture() {
    if (this.head < 0) return;
    const {size, pixels} =
        this.picture({size: this.affordable(STILL_SECONDS, this.scene.rendering.resolution)});
    const canvas = Object.assign(document.createElement("canvas"), {width: size, height: size});
    canvas.getContext("2d").putImageData(new ImageData(pixels, size, size), 0, 0);
    const name = this.scene.heads[this.head].name.replace(/\W+/g, "-");
    canvas.toBlob((blob) => {
      const link = Object.assign(
          document.createElement("a"), {href: URL.createObjectURL(blob), download: `${name}.png`});
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
}

function headButton(head, index, onClick) {
  const button = document.createElement("button");
  const picture =
      Object.assign(document.createElement("img"), {src: head.picture, alt: "", draggable: false});
  const name = Object.assign(document.createElement("span"), {textContent: head.name});
  button.append(picture, name);
  button.type = "button";
  button.id = `head-${index}`;
  button.setAttribute("aria-label", `Show ${head.name}`);
  button.addEventListener("click", onClick);
  return button;
}

function connect(page) {
  const {elements, orbit, renderer} = page;
  attachControls(elements.canvas, orbit, (isHeld) => page.hold(isHeld));
  elements.depth.addEventListener(
      "click", () => page.showView(page.view === "depth" ? "image" : "depth"));
  elements.turn.addEventListener(
      "click", () => (page.swing ? page.stopSwinging() : page.startSwinging()));
  elements.free.addEventListener("click", () => {
    orbit.free = !orbit.free;
    elements.free.setAttribute("aria-pressed", orbit.free);
    orbit.move({});
  });
  elements.reset.addEventListener("click", () => {
    page.stopSwinging();
    orbit.reset();
  });
  elements.save.addEventListener("click", () => page.savePicture());
  window.addEventListener("resize", () => page.change());
  window.addEventListener("hashchange", () => page.followAddress(location.hash));
  elements.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  elements.canvas.addEventListener("webglcontextrestored", () => {
    renderer.start();
    page.head = -1;  // its planes are gone; until they are here again nothing is drawn
    page.full = null;
    page.showHead(page.wanted);
  });
}

function complain(elements, error) {
  elements.message.textContent =
      `${error.message} The pictures below show the heads from the front.`;
  elements.message.hidden = false;
  elements.canvas.hidden = true;
}

async function main() {
  const scene = JSON.parse(document.getElementById("scene").textContent);
  const names = ["canvas", "heads", "depth", "turn", "free", "reset", "save", "message"];
  const elements = Object.fromEntries(names.map((name) => [name, document.getElementById(name)]));
  const buttons =
      scene.heads.map((head, index) => headButton(head, index, () => page.showHead(index)));
  elements.heads.append(...buttons);
  let page = null;
  try {
    if (typeof DecompressionStream === "undefined")
      throw new Error("This browser cannot unpack the planes.");
    const source = (name) => document.getElementById(name).textContent;
    const renderer = new Renderer(
        elements.canvas, scene, {vertex: source("screen.vert"), fragment: source("render.frag")});
    page = new Page(scene, renderer, elements);
    connect(page);
    await page.followAddress(location.hash);
    window.avatars = page;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!location.hash && !isCalm) greet(page);
  } catch (error) {
    complain(elements, error);
  }
}

// One swing to and fro tells that the picture can be turned.
function greet(page) {
  page.startSwinging();
  const swing = page.swing;
  setTimeout(() => {
    if (page.swing === swing) page.stopSwinging();
  }, SWING_SECONDS * 1000);
}

main();
