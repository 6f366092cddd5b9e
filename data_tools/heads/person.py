"""One random person: shape, hair, eyes and colours drawn from a seed, as a mesh inside the unit
box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.heads.basis import HeadBasis, load_basis
from data_tools.heads.paint import EYE, SKIN, Look, hair_depth, paint, random_look
from data_tools.heads.render import Array, Mesh, vertex_normals

# Canonical heights (m) of the mean head's crown and chin; together they set the scale of everyone.
CROWN, CHIN = 0.849, 0.617
HEAD_HEIGHT, HEAD_TOP = 0.72, 0.395
BOX_HALF = 0.5
NECK_HALF_WIDTH, SHOULDER_REACH = 0.055, 0.05
# The front of the eyeball, as far as lids can open; the pupil is its pole.
EYE_RINGS, EYE_SECTORS, EYE_CAP = 14, 32, 1.45
# Spread and limit of local shape changes in MakeHuman's units, where 1 is a caricature.
LOCAL_SPREAD, LOCAL_LIMIT, ASYMMETRY = 0.27, 0.7, 0.04
# Somewhat larger eyes than average, so that they survive at 64 pixels.
LOCAL_MEAN = {"eye-scale-incr": 0.25, "eye-height2-incr": 0.15}
# Vertices, faces and attributes of one surface.
Part = tuple[Array, NDArray[np.int64], Array]


@dataclass(frozen=True)
class Person:
    """Everything that is random about one head: weights of the shape directions (K,), gaze (yaw,
    pitch in radians), looks, and the `random_traits` that both go with.
    """

    shape: Array
    size: float
    gaze: tuple[float, float]
    look: Look
    origins: dict[str, float]


@dataclass(frozen=True)
class Head:
    """A head as a triangle mesh in world coordinates: box of side 1 around the origin, face towards
    +z, y up.

    Attributes:
        vertices: (V, 3). faces: (T, 3).
        landmarks: name -> (3,): `left_eye`, `right_eye` (eyeball centres), `left_pupil`,
            `right_pupil` (on the surface), `nose_tip`. Left and right are the person's own: the
            left eye has positive x.
        mesh: what the ray caster takes; look: what the painter takes.
    """

    vertices: Array
    faces: NDArray[np.int64]
    landmarks: dict[str, Array]
    mesh: Mesh
    look: Look

    @property
    def colours(self) -> Array:
        """Unlit vertex colours (V, 3), 0..1."""
        return paint(self.mesh.attributes, self.look)


def _hat(value: float, anchors: Sequence[float]) -> Array:
    """Weights of linear interpolation at `value` between sorted `anchors`."""
    return np.array([np.interp(value, anchors, row) for row in np.eye(len(anchors))])


def phenotype_weights(labels: Sequence[str], traits: dict[str, float]) -> Array:
    """Weights of the `universal:` and `race:` shapes among `labels` (0 for others): products of
    interpolated traits.

    Args:
        labels: names of the basis' shapes.
        traits: gender (0 male .. 1 female), age (0 young .. 1 old), muscle, weight (0..1), african,
            asian, caucasian (sum 1).
    """
    part: dict[str, float] = {name: traits[name] for name in ("african", "asian", "caucasian")}
    part |= dict(zip(("male", "female"), _hat(traits["gender"], (0, 1)), strict=True))
    part |= dict(zip(("young", "old"), _hat(traits["age"], (0, 1)), strict=True))
    for trait in ("muscle", "weight"):
        part |= dict(
            zip(
                (f"min{trait}", f"average{trait}", f"max{trait}"),
                _hat(traits[trait], (0, 0.5, 1)),
                strict=True,
            )
        )
    names = (label.split(":", 1) for label in labels)
    return np.array(
        [
            np.prod([part[key] for key in name.split("-")])
            if block in ("universal", "race")
            else 0.0
            for block, name in names
        ]
    )


def random_traits(rng: np.random.Generator) -> dict[str, float]:
    """Gender, age, muscle, weight and a mixture of origins; adults only."""
    origin = rng.dirichlet((0.35, 0.35, 0.35))
    gender = float(np.clip(rng.choice((0.08, 0.92)) + rng.normal(0, 0.1), 0, 1))
    return {
        "gender": gender,
        "age": float(rng.beta(1.0, 2.2)),
        "muscle": float(rng.uniform(0.25, 0.75)),
        "weight": float(rng.beta(2.2, 2.2)),
        **dict(zip(("african", "asian", "caucasian"), map(float, origin), strict=True)),
    }


def _local_weights(labels: Sequence[str], rng: np.random.Generator) -> Array:
    """Changes of parts: adjacent labels are the two directions of one change, sides of the face
    almost agree.
    """
    weights = np.zeros(len(labels))
    drawn: dict[str, float] = {}
    rows = [row for row, label in enumerate(labels) if label.startswith("local_change:")]
    for positive, negative in zip(rows[::2], rows[1::2], strict=True):
        stem = labels[positive].split(":", 1)[1].removeprefix("l-").removeprefix("r-")
        value = drawn.setdefault(stem, rng.normal(LOCAL_MEAN.get(stem, 0), LOCAL_SPREAD))
        value = float(np.clip(value + rng.normal(0, ASYMMETRY), -LOCAL_LIMIT, LOCAL_LIMIT))
        weights[positive if value > 0 else negative] = abs(value)
    return weights


def _action_weights(labels: Sequence[str], rng: np.random.Generator) -> Array:
    """A slight expression, the same on both sides of the face."""
    weights = np.zeros(len(labels))
    strength = {
        "mouthSmile": rng.uniform(-0.15, 0.6),
        "browInnerUp": rng.uniform(-0.5, 0.4),
        "browDown": rng.uniform(-0.6, 0.4),
    }
    strength |= {
        "eyeSquint": rng.uniform(-0.6, 0.4),
        "eyeWide": rng.uniform(-0.5, 0.5),
        "mouthFrown": rng.uniform(-0.8, 0.15),
    }
    for row, label in enumerate(labels):
        block, name = label.split(":", 1)
        if block == "facial_action":
            weights[row] = max(
                0.0, strength.get(name.removesuffix("Left").removesuffix("Right"), 0.0)
            )
    return weights


def random_person(basis: HeadBasis, rng: np.random.Generator) -> Person:
    """Draw a person; nothing else is random about a head."""
    traits = random_traits(rng)
    labels = [str(label) for label in basis.labels]
    shape = (
        phenotype_weights(labels, traits)
        + _local_weights(labels, rng)
        + _action_weights(labels, rng)
    )
    gaze = (float(rng.normal(0, 0.06)), float(rng.normal(0, 0.03)))
    size = float(rng.normal(1, 0.025))
    return Person(shape, size, gaze, random_look(traits, rng), traits)


def _eyeball(
    points: Array, gaze: tuple[float, float]
) -> tuple[Array, NDArray[np.int64], Array, Array, Array]:
    """A spherical cap in place of MakeHuman's 72-vertex eyeball `points`.

    Returns:
        vertices (V, 3), faces (T, 3), the same points relative to the gaze on the unit sphere (V,
        3), the centre (3,), the pupil (3,).
    """
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.ptp(points, axis=0)[:2].mean() / 2
    polar = EYE_CAP * np.linspace(0, 1, EYE_RINGS)
    around = 2 * np.pi * np.arange(EYE_SECTORS) / EYE_SECTORS
    a, b = (grid.reshape(-1) for grid in np.meshgrid(polar, around, indexing="ij"))
    local = np.stack([np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)], axis=1)
    yaw, pitch = gaze
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    )
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    world = local @ (turn @ tilt).T
    return (
        centre + radius * world,
        _grid_faces(EYE_RINGS, EYE_SECTORS),
        local,
        centre,
        centre + radius * world[0],
    )


def _grid_faces(rings: int, sectors: int) -> NDArray[np.int64]:
    ring, sector = (
        grid.reshape(-1)
        for grid in np.meshgrid(np.arange(rings - 1), np.arange(sectors), indexing="ij")
    )
    a, b = ring * sectors + sector, ring * sectors + (sector + 1) % sectors
    return np.concatenate(
        [np.stack([a, a + sectors, b], axis=1), np.stack([b, a + sectors, b + sectors], axis=1)]
    )


def coarse_points(
    basis: HeadBasis, person: Person, rows: slice | NDArray[np.int64] = slice(None)
) -> NDArray[np.float32]:
    """Coarse vertices (V, 3) of a person in metres, without hair; all, or some rows of them."""
    active = np.flatnonzero(person.shape)
    # einsum, not a BLAS product: the same sums in the same order whatever the number of threads.
    return basis.template[rows] + np.einsum(
        "k,kvc->vc", person.shape[active].astype(np.float32), basis.shapes[:, rows][active]
    )


def build_head(basis: HeadBasis, person: Person) -> Head:
    """Shape, hair and eyes of a person, scaled into the box of side 1."""
    coarse = coarse_points(basis, person)
    count = basis.skin_count
    skin = np.asarray(basis.refine @ coarse[:count], dtype=np.float64)
    canonical = np.asarray(basis.refine @ basis.template[:count], dtype=np.float64)
    skin = _narrow_bust(skin)
    ear = basis.ear.astype(np.float64)
    normals = vertex_normals(skin, basis.faces)
    skin = skin + normals * hair_depth(canonical, ear, person.look)[:, None]
    tags = np.column_stack([canonical, ear, np.full(len(skin), SKIN)])
    parts: list[Part] = [(skin, basis.faces, tags)]
    pupils = []
    for points in np.split(coarse[count:].astype(np.float64), 2):
        ball, ball_faces, local, centre, pupil = _eyeball(points, person.gaze)
        parts.append(
            (
                ball,
                ball_faces,
                np.column_stack([local, np.zeros(len(ball)), np.full(len(ball), EYE)]),
            )
        )
        pupils.append((centre, pupil))
    return _assemble(parts, pupils, canonical, person)


def _narrow_bust(skin: Array) -> Array:
    """Pull the shoulders in, or their cut edge would show at the sides of the frame."""
    narrow = skin.copy()
    beyond = np.maximum(np.abs(skin[:, 0]) - NECK_HALF_WIDTH, 0)
    below = np.clip((CHIN - skin[:, 1]) / 0.06, 0, 1)
    narrow[:, 0] = np.sign(skin[:, 0]) * (
        np.abs(skin[:, 0])
        - below * (beyond - SHOULDER_REACH * np.tanh(beyond / (2.5 * SHOULDER_REACH)))
    )
    return narrow


def _assemble(
    parts: list[Part], pupils: list[tuple[Array, Array]], canonical: Array, person: Person
) -> Head:
    skin = parts[0][0]
    offsets = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts)])
    faces = np.concatenate(
        [part_faces + offset for (_, part_faces, _), offset in zip(parts, offsets, strict=False)]
    )
    placed = _placement(skin, canonical, person.size)
    vertices = np.clip(placed(np.concatenate([part[0] for part in parts])), -BOX_HALF, BOX_HALF)
    tags = np.concatenate([part[2] for part in parts])
    nose = placed(skin[np.argmax(np.where(np.abs(canonical[:, 0]) < 0.01, skin[:, 2], -np.inf))])
    landmarks = {"nose_tip": nose}
    for side, (centre, pupil) in zip(("left", "right"), pupils, strict=True):
        landmarks |= {f"{side}_eye": placed(centre), f"{side}_pupil": placed(pupil)}
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), tags)
    return Head(vertices, faces, landmarks, mesh, person.look)


def _placement(skin: Array, canonical: Array, size: float) -> Callable[[Array], Array]:
    """Map from the body's metres to the box: crown at a fixed height, ears and nose centred, chin
    to crown a fixed length.
    """
    head = canonical[:, 1] > CHIN + 0.01
    top = skin[:, 1].max()
    scale = size * HEAD_HEIGHT / np.ptp(skin[head, 1])
    middle = (skin[head, 2].max() + skin[head, 2].min()) / 2
    shift = np.array([0, HEAD_TOP - scale * top, -scale * middle])
    return lambda points: np.asarray(points, dtype=np.float64) * scale + shift


def head_mesh(seed: int | Sequence[int]) -> Head:
    """The head of an identity, fully determined by `seed`; `generate_heads` uses (data set seed,
    identity index).
    """
    basis = load_basis()
    return build_head(basis, random_person(basis, np.random.default_rng(seed)))
