"""Pictures of random toy vehicles: clearly different things in many colours, seen from all around
before white, with exactly known cameras. Nothing in them looks like a face.

A vehicle is a few boxes and cylinders. Its kind, sizes and colours are functions of its number.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image

from data_tools.heads.paint import light
from data_tools.heads.render import Array, Mesh, Raycaster
from data_tools.sinks import image_name, open_sink, write_labels
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics, unpack_label

RADIUS, FOCAL = 2.7, 2.6
LOWEST_PITCH, HIGHEST_PITCH = 0.1, 0.8  # radians above the ground
WHITE = (255, 255, 255)
TYRE, GLASS = (0.12, 0.12, 0.13), (0.55, 0.7, 0.8)


@dataclass(frozen=True)
class Body:
    """What the painted boxes of a vehicle measure, lengths along x, heights along y.

    Attributes:
        hull: (length, height, width). cabin: (length, height), and `cabin_at` where its middle is,
            as a part of the hull's length.
        wheels: pairs of them. wheel: their radius.
        roof: height of a painted box on top of the cabin; 0 = none.
    """

    hull: tuple[float, float, float]
    cabin: tuple[float, float]
    cabin_at: float
    wheels: int
    wheel: float
    roof: float = 0.0


def random_body(rng: np.random.Generator) -> Body:
    """A saloon, a van, a pick-up, a lorry, a bus or a racer."""
    kind = rng.integers(6)
    stretch = rng.uniform(0.85, 1.15)
    saloon, van, pick_up, lorry, bus, racer = (
        Body((0.86, 0.16, 0.36), (0.46, 0.15), rng.uniform(-0.1, 0.1), 2, 0.085),
        Body((0.72, 0.20, 0.36), (0.62, 0.16), -0.04, 2, 0.08, roof=0.06),
        Body((0.86, 0.16, 0.36), (0.26, 0.18), 0.12, 2, 0.10),
        Body((0.92, 0.10, 0.34), (0.20, 0.28), 0.38, 3, 0.085),
        Body((0.92, 0.22, 0.32), (0.90, 0.14), 0.0, 3, 0.07, roof=0.05),
        Body((0.86, 0.09, 0.30), (0.16, 0.09), -0.1, 2, 0.10),
    )
    body = (saloon, van, pick_up, lorry, bus, racer)[kind]
    length, height, width = body.hull
    return Body(
        (min(length * stretch, 0.95), height * rng.uniform(0.85, 1.3), width / stretch**0.5),
        body.cabin,
        body.cabin_at,
        body.wheels,
        body.wheel * rng.uniform(0.85, 1.2),
        body.roof,
    )


def random_colour(rng: np.random.Generator) -> Array:
    """Any hue, mostly bright, seldom grey (3,)."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.2, 1) ** 0.5, rng.uniform(0.35, 1)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * wheel)


def vehicle(seed: int, number: int) -> Mesh:
    """The vehicle of that number; attributes are colours. Each triangle has corners of its own, so
    that edges stay sharp.
    """
    rng = np.random.default_rng((seed, number))
    body, paint, second = random_body(rng), random_colour(rng), random_colour(rng)
    length, height, width = body.hull
    bottom = -0.3 + body.wheel
    parts = [
        (_box((length, height, width), (0, bottom + height / 2, 0)), paint),
        (
            _box(
                (body.cabin[0], body.cabin[1], width * 0.86),
                (body.cabin_at * length, bottom + height + body.cabin[1] / 2, 0),
            ),
            np.array(GLASS),
        ),
    ]
    if body.roof:
        top = bottom + height + body.cabin[1] + body.roof / 2
        parts.append(
            (
                _box((body.cabin[0], body.roof, width * 0.9), (body.cabin_at * length, top, 0)),
                second,
            )
        )
    elif body.wheels == 3:  # what a lorry carries
        load = (length * 0.66, height * rng.uniform(1.2, 2.8), width)
        parts.append((_box(load, (-length * 0.16, bottom + height + load[1] / 2, 0)), second))
    for place in np.linspace(-0.34, 0.34, body.wheels) * length:
        for side in (-1, 1):
            wheel = trimesh.creation.cylinder(body.wheel, 0.07, sections=20)
            wheel.apply_translation((place, bottom, side * width / 2))
            parts.append((wheel, np.array(TYRE)))
    corners = np.concatenate([part.triangles.reshape(-1, 3) for part, _ in parts])
    normals = np.concatenate([part.face_normals.repeat(3, axis=0) for part, _ in parts])
    colours = np.concatenate([np.tile(c, (3 * len(part.faces), 1)) for part, c in parts])
    faces = np.arange(len(corners)).reshape(-1, 3)
    return Mesh(corners, faces, normals, colours)


def _box(size: tuple[float, float, float], centre: tuple[float, float, float]) -> trimesh.Trimesh:
    box = trimesh.creation.box(size)
    box.apply_translation(centre)
    return box


def random_camera(seed: int, number: int) -> torch.Tensor:
    """Label (25,) of the camera of picture `number`: from all around, above the ground."""
    rng = np.random.default_rng((seed, number, 1))
    yaw, pitch = rng.uniform(-np.pi, np.pi), rng.uniform(LOWEST_PITCH, HIGHEST_PITCH)
    pose = orbit_pose(torch.tensor([yaw]).float(), torch.tensor([pitch]).float(), RADIUS, (0, 0, 0))
    return pack_label(pose, pinhole_intrinsics(FOCAL))[0]


def render(mesh: Mesh, label: torch.Tensor, resolution: int) -> NDArray[np.uint8]:
    """Picture (resolution, resolution, 3) of a lit vehicle before white."""
    cam2world, intrinsics = unpack_label(label.double())
    return (
        Raycaster(mesh)
        .render(
            cam2world.numpy(),
            intrinsics.numpy(),
            resolution,
            lambda colours, normals: colours * light(normals),
            WHITE,
        )
        .image
    )


def write_vehicles(dest: Path, count: int, resolution: int, seed: int = 0) -> None:
    """Write `count` pictures, each of another vehicle, as a data set for train.py."""
    names, labels = [image_name(number) for number in range(count)], []
    with open_sink(dest, overwrite=True) as sink:
        for number, name in enumerate(names):
            label = random_camera(seed, number)
            buffer = io.BytesIO()
            picture = render(vehicle(seed, number), label, resolution)
            Image.fromarray(picture).save(buffer, "PNG")
            sink.write(name, buffer.getvalue())
            labels.append(label.numpy())
        write_labels(sink, names, np.stack(labels))
