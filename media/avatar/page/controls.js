"use strict";
// Mouse, touch and keys change where the camera stands: { yaw, pitch, zoom, shift }.

const TURN_A_PICTURE = 2.4;  // radians for a drag across the whole picture
const KEY_STEP = 0.08;
const ZOOM_LIMITS = [0.5, 8];

class Orbit {
  constructor(cameras, onChange) {
    this.cameras = cameras;
    this.onChange = onChange;
    this.free = false;
    this.reset();
  }

  reset() {
    const {yaw, pitch} = this.cameras;
    this.move({yaw, pitch, zoom: 1, shift: [0, 0]});
  }

  // Sets what is given and keeps the rest, within the limits.
  move(change) {
    Object.assign(this, change);
    const [low, high] = this.yawLimits();
    if (Number.isFinite(low)) this.yaw = clamp(this.yaw, low, high);
    this.pitch = clamp(this.pitch, ...this.pitchLimits());
    this.zoom = clamp(this.zoom, ...ZOOM_LIMITS);
    const reach = Math.max(0.5, this.zoom / 2);
    this.shift = this.shift.map((x) => clamp(x, -reach, reach));
    this.onChange();
  }

  // Beyond the views of the training data a head is a guess; a little of that is shown, all of it
  // only if asked for.
  yawLimits() {
    const [low, high] = this.cameras.yaw_range;
    return this.free || high - low > 6.28 ? [-Infinity, Infinity] : [low - 0.3, high + 0.3];
  }

  pitchLimits() {
    const [low, high] = this.cameras.pitch_range;
    return this.free ? [-1.5, 1.5] : [Math.max(low - 0.2, -1.5), Math.min(high + 0.2, 1.5)];
  }

  turnBy(right, up) {
    this.move({yaw: this.yaw + right, pitch: this.pitch + up});
  }

  // Zooms by a factor around a point of the picture, (0.5, 0.5) its middle.
  zoomBy(factor, at = [0.5, 0.5]) {
    const zoom = clamp(this.zoom * factor, ...ZOOM_LIMITS);
    const real = zoom / this.zoom;
    this.move({zoom, shift: this.shift.map((x, i) => at[i] - 0.5 - (at[i] - 0.5 - x) * real)});
  }

  shiftBy(right, down) {
    this.move({shift: [this.shift[0] + right, this.shift[1] + down]});
  }
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Listens on `element`; `onTouch(isHeld)` is told when a person takes hold and lets go.
function attachControls(element, orbit, onTouch) {
  const held = new Map();
  const place = (event) => {
    const box = element.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const middle = () => [0, 1].map(
      (i) => [...held.values()].reduce((sum, point) => sum + point[i], 0) / held.size);
  const spread = () => {
    const [a, b] = [...held.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  const release = (event) => {
    held.delete(event.pointerId);
    if (!held.size) onTouch(false);
  };

  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    held.set(event.pointerId, place(event));
    onTouch(true);
  });
  element.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const before = {middle: middle(), spread: held.size === 2 ? spread() : 0};
    held.set(event.pointerId, place(event));
    const moved = middle().map((x, i) => x - before.middle[i]);
    if (held.size === 2) {
      orbit.shiftBy(...moved);
      if (before.spread > 0.01) orbit.zoomBy(spread() / before.spread, middle());
    } else if (event.shiftKey || event.buttons === 2 || event.buttons === 4) {
      orbit.shiftBy(...moved);
    } else {
      orbit.turnBy(-moved[0] * TURN_A_PICTURE, moved[1] * TURN_A_PICTURE);
    }
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
    element.addEventListener(name, release);
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("dblclick", () => orbit.reset());
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    orbit.zoomBy(Math.exp(-event.deltaY * lines * 0.002), place(event));
    onTouch(false);
  }, {passive: false});
  element.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => orbit.turnBy(-KEY_STEP, 0),
      ArrowRight: () => orbit.turnBy(KEY_STEP, 0),
      ArrowUp: () => orbit.turnBy(0, KEY_STEP),
      ArrowDown: () => orbit.turnBy(0, -KEY_STEP),
      "+": () => orbit.zoomBy(1.15),
      "=": () => orbit.zoomBy(1.15),
      "-": () => orbit.zoomBy(1 / 1.15),
      0: () => orbit.reset(),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    onTouch(false);
  });
}
