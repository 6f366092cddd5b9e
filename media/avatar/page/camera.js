"use strict";
// Cameras as in training/cameras.py: x right, y down, z forward; the world's y axis points up.
// Angles are radians.

const cross =
    (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

const norm = (v) => Math.hypot(v[0], v[1], v[2]);

const normalized = (v) => v.map((x) => x / norm(v));

// The camera of the data's orbit. Zooming changes the focal length and not the distance, because
// near and far limits are distances.
function orbitCamera(orbit, {yaw, pitch, zoom = 1, shift = [0, 0]}) {
  const toCamera =
      [Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch)];
  const origin = orbit.center.map((x, i) => x + orbit.radius * toCamera[i]);
  const forward = normalized(orbit.pivot.map((x, i) => x - origin[i]));
  const across = cross([0, -1, 0], forward);
  const right = norm(across) > 1e-6 ? normalized(across) : [1, 0, 0];
  const down = cross(forward, right);
  const [fx, skew, cx, , fy, cy] = orbit.intrinsics;
  return {
    origin,
    columns: [right, down, forward],
    pinhole: [
      fx * zoom, fy * zoom, 0.5 + (cx - 0.5) * zoom + shift[0], 0.5 + (cy - 0.5) * zoom + shift[1]
    ],
    skew: skew * zoom,
  };
}

// The camera of a label of 25 numbers: the rows of a 4 x 4 camera-to-world matrix, then the rows of
// the intrinsics.
function labelCamera(label) {
  const column = (i) => [label[i], label[4 + i], label[8 + i]];
  const [fx, skew, cx, , fy, cy] = label.slice(16);
  return {
    origin: column(3),
    columns: [column(0), column(1), column(2)],
    pinhole: [fx, fy, cx, cy],
    skew
  };
}

// The inverse: the label of a camera.
function cameraLabel({origin, columns, pinhole, skew}) {
  const rows = [0, 1, 2].map((i) => [...columns.map((column) => column[i]), origin[i]]);
  const [fx, fy, cx, cy] = pinhole;
  return [...rows.flat(), 0, 0, 0, 1, fx, skew, cx, 0, fy, cy, 0, 0, 1];
}
