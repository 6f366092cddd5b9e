"""Colours of a head: procedural masks over canonical coordinates, evaluated wherever a ray hits,
and a soft light.

Canonical coordinates (metres, mean head: x to its left, y up, z out of the face) stick to the skin
as shapes change, so a brow drawn there once sits on everyone's brow. Distances in this file are
canonical metres, colours plain sRGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Parts, told apart by the last attribute of a point: (x, y, z, ear, part).
SKIN, EYE = 0.0, 1.0
EYE_CENTRE, EYE_RADIUS = (0.0308, 0.7284, 0.1245), 0.0138
SKIN_TONES = np.array(
    [
        (0.97, 0.84, 0.76),
        (0.93, 0.76, 0.64),
        (0.82, 0.62, 0.48),
        (0.62, 0.43, 0.31),
        (0.42, 0.28, 0.20),
        (0.29, 0.19, 0.14),
    ]
)
HAIR_TONES = {
    "black": (0.07, 0.06, 0.06),
    "dark": (0.19, 0.12, 0.08),
    "brown": (0.36, 0.23, 0.13),
    "blond": (0.78, 0.62, 0.36),
    "ginger": (0.62, 0.27, 0.10),
    "grey": (0.64, 0.62, 0.58),
}
IRIS_TONES = {
    "brown": (0.30, 0.17, 0.08),
    "dark": (0.16, 0.10, 0.07),
    "hazel": (0.43, 0.34, 0.15),
    "green": (0.30, 0.45, 0.30),
    "blue": (0.30, 0.48, 0.68),
    "grey": (0.45, 0.52, 0.56),
}
# Hairline from the side: height of the hair's lower edge over z, from the nape past the ear and
# sideburn to the forehead.
HAIRLINE_Z = (
    -0.06,
    -0.03,
    0.0,
    0.02,
    0.034,
    0.045,
    0.060,
    0.066,
    0.078,
    0.086,
    0.098,
    0.112,
    0.135,
    0.17,
)
HAIRLINE_Y = (
    0.650,
    0.652,
    0.660,
    0.676,
    0.700,
    0.735,
    0.735,
    0.708,
    0.708,
    0.745,
    0.775,
    0.793,
    0.800,
    0.800,
)


@dataclass(frozen=True)
class Look:
    """Colours (3,) and shapes of one person's skin, hair, brows, lips and eyes.

    hair_thickness 0 means bald; beard is the share of hair colour on the jaw; lengths in canonical
    metres; hair_class and iris_class are keys of the tables of tones.
    """

    skin: Array
    blush: float
    lips: Array
    hair: Array
    hair_class: str
    hair_thickness: float
    hairline_lift: float
    hairline_recede: float
    hairline_peak: float
    volume: tuple[float, float]
    strands: float
    phase: float
    brow: Array
    brow_lift: float
    brow_arch: float
    brow_width: float
    brow_length: float
    brow_strength: float
    beard: float
    beard_depth: float
    moustache: float
    lashes: float
    iris: Array
    iris_class: str
    iris_size: float
    sclera: Array


def _skin_tone(traits: dict[str, float], rng: np.random.Generator) -> Array:
    melanin = (
        4.0 * traits["african"]
        + 1.1 * traits["asian"]
        + 0.6 * traits["caucasian"]
        + rng.normal(0, 0.5)
    )
    melanin = float(np.clip(melanin, 0, len(SKIN_TONES) - 1))
    tone = np.array(
        [np.interp(melanin, range(len(SKIN_TONES)), SKIN_TONES[:, channel]) for channel in range(3)]
    )
    return np.clip(tone * (1 + rng.normal(0, 0.02, 3)), 0, 1)


def _pick(
    tones: dict[str, tuple[float, float, float]], odds: dict[str, float], rng: np.random.Generator
) -> tuple[str, Array]:
    """A class, and a colour of it."""
    names = list(odds)
    share = np.array([odds[name] for name in names])
    name = names[rng.choice(len(names), p=share / share.sum())]
    tone = np.array(tones[name]) * rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.04, 3))
    return name, np.clip(tone, 0, 1)


def _hair_colour(fair: float, old: float, rng: np.random.Generator) -> tuple[str, Array]:
    odds = {
        "black": 1.2 - fair,
        "dark": 0.7,
        "brown": 0.1 + fair,
        "blond": 0.9 * fair**2,
        "ginger": 0.4 * fair**2,
        "grey": 1.6 * old**2,
    }
    return _pick(HAIR_TONES, odds, rng)


def _iris_colour(fair: float, rng: np.random.Generator) -> tuple[str, Array]:
    odds = {
        "brown": 0.8,
        "dark": 1.2 - fair,
        "hazel": 0.5 * fair,
        "green": 0.4 * fair,
        "blue": 0.9 * fair,
        "grey": 0.3 * fair,
    }
    return _pick(IRIS_TONES, odds, rng)


def _lip_colour(skin: Array, male: bool, rng: np.random.Generator) -> Array:
    """Between the lips' own colour, which goes with the skin's, and that of lipstick."""
    rouge = rng.uniform(0, 0.25) if male else rng.uniform(0.1, 0.75)
    bare = 0.5 * skin * (1.0, 0.72, 0.70) + 0.5 * np.array([0.72, 0.36, 0.34]) * (
        0.45 + 0.55 * skin[1]
    )
    red = np.array([0.70, 0.13, 0.16]) * rng.uniform(0.8, 1.1)
    return np.clip((1 - rouge) * bare + rouge * red, 0, 1)


def random_look(traits: dict[str, float], rng: np.random.Generator) -> Look:
    """Draw colours and styles that go with a person's traits (`person.random_traits`)."""
    fair, old, male = traits["caucasian"], traits["age"], traits["gender"] < 0.5
    skin = _skin_tone(traits, rng)
    hair_class, hair = _hair_colour(fair, old, rng)
    iris_class, iris = _iris_colour(fair, rng)
    bald = rng.random() < (0.1 + 0.15 * old if male else 0.02)
    bearded = male and rng.random() < 0.4
    lips = _lip_colour(skin, male, rng)
    return Look(
        skin=skin,
        blush=float(rng.uniform(0.1, 0.6)),
        lips=lips,
        hair=hair,
        hair_class=hair_class,
        hair_thickness=0.0
        if bald
        else float(rng.uniform(0.003, 0.014) if male else rng.uniform(0.006, 0.02)),
        hairline_lift=float(rng.normal(0, 0.004)),
        hairline_recede=float(
            rng.exponential(0.008 + 0.01 * old) if male else rng.exponential(0.003)
        ),
        hairline_peak=float(rng.normal(0, 0.004)),
        volume=(float(rng.uniform(0.3, 1.6)), float(rng.uniform(0.5, 1.3))),
        strands=float(rng.uniform(0.05, 0.16)),
        phase=float(rng.uniform(0, 6.28)),
        brow=np.clip(hair * rng.uniform(0.5, 0.8), 0, 0.42),
        brow_lift=float(rng.normal(0, 0.0012)),
        brow_arch=float(rng.uniform(0.001, 0.006)),
        brow_width=float(rng.uniform(0.0026, 0.0042) if male else rng.uniform(0.0016, 0.003)),
        brow_length=float(rng.uniform(0.042, 0.049)),
        brow_strength=float(rng.uniform(0.7, 0.95)),
        beard=float(rng.uniform(0.25, 0.85)) if bearded else 0.0,
        beard_depth=float(rng.uniform(0, 0.006)) if bearded else 0.0,
        moustache=float(rng.choice((0.4, 1.0))) if bearded else 0.0,
        lashes=float(rng.uniform(0.4, 0.7) if male else rng.uniform(0.65, 0.95)),
        iris=iris,
        iris_class=iris_class,
        iris_size=float(rng.uniform(0.46, 0.53)),
        sclera=np.clip(np.array([0.95, 0.94, 0.93]) * rng.uniform(0.93, 1.03), 0, 1),
    )


def _ramp(value: Array, start: float, end: float) -> Array:
    """Smooth step: 0 at `start`, 1 at `end` (which may be smaller)."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _mix(colour: Array, other: Array, share: Array) -> Array:
    return colour + share[:, None] * (other - colour)


def hair_margin(points: Array, ear: Array, look: Look) -> Array:
    """How far canonical points (M, 3) lie inside the hair (metres, negative outside); ears are
    bare.
    """
    x, y, z = points.T
    line = np.interp(z, HAIRLINE_Z, HAIRLINE_Y) + look.hairline_lift
    temple = np.exp(-(((np.abs(x) - 0.042) / 0.02) ** 2)) * _ramp(z, 0.05, 0.1)
    line = (
        line
        + look.hairline_recede * (temple + 0.4 * _ramp(z, 0.08, 0.12))
        - look.hairline_peak * np.exp(-((x / 0.014) ** 2)) * _ramp(z, 0.08, 0.12)
    )
    return y - line - 0.03 * ear


def hair_depth(points: Array, ear: Array, look: Look) -> Array:
    """Thickness (M,) of hair and beard over canonical points (M, 3)."""
    side, top = look.volume
    crown = _ramp(points[:, 1], 0.74, 0.83)
    style = side * (1 - crown) + top * crown
    # Flat around the ears, so that hair does not stand off in a step behind them.
    near_ear = _ramp(np.hypot(points[:, 1] - 0.705, points[:, 2] - 0.052), 0.03, 0.06)
    scalp = (
        look.hair_thickness
        * style
        * near_ear
        * _ramp(hair_margin(points, ear, look), -0.002, 0.016)
    )
    return scalp + look.beard_depth * beard_mask(points, ear, look)


def beard_mask(points: Array, ear: Array, look: Look) -> Array:
    """Share of beard (M,) at canonical points: jaw and chin below the cheek line, around the mouth,
    not on the neck.
    """
    x, y, z = points.T
    side = np.abs(x)
    cheek = np.interp(z, (0.06, 0.085, 0.12, 0.15), (0.715, 0.685, 0.668, 0.655))
    jaw = _ramp(cheek - y, -0.004, 0.014) * _ramp(y, 0.612, 0.622) * _ramp(z, 0.058, 0.066)
    top = np.interp(side, (0, 0.01, 0.026), (0.6785, 0.6785, 0.668))
    upper = (
        look.moustache
        * _ramp(top - y, -0.001, 0.0025)
        * _ramp(y, 0.655, 0.66)
        * _ramp(0.029 - side, 0, 0.005)
        * _ramp(z, 0.12, 0.14)
    )
    return np.clip(jaw + upper, 0, 1) * (1 - lip_mask(points)) * (1 - np.clip(ear * 3, 0, 1))


def lip_mask(points: Array) -> Array:
    """Share of lips (M,) at canonical points."""
    x, y, z = points.T
    side = np.abs(x)
    upper = np.interp(
        side,
        (0, 0.004, 0.009, 0.016, 0.0225, 0.025),
        (0.6685, 0.6695, 0.6715, 0.6680, 0.6625, 0.6605),
    )
    lower = np.interp(
        side,
        (0, 0.006, 0.012, 0.018, 0.0225, 0.025),
        (0.6490, 0.6492, 0.6510, 0.6545, 0.6590, 0.6605),
    )
    return (
        _ramp(upper - y, -0.0006, 0.0008)
        * _ramp(y - lower, -0.0006, 0.0010)
        * _ramp(0.0245 - side, 0, 0.001)
        * _ramp(z, 0.115, 0.125)
    )


def brow_mask(points: Array, look: Look) -> Array:
    """Share of eyebrow (M,) at canonical points."""
    x, y, z = points.T
    side = np.abs(x)
    along = np.clip((side - 0.012) / (look.brow_length - 0.012), 0, 1)
    middle = 0.7475 + look.brow_lift + look.brow_arch * np.sin(np.pi * along**1.5) - 0.0015 * along
    half = look.brow_width * np.interp(along, (0, 0.15, 0.6, 1), (0.75, 1, 0.85, 0.25))
    ends = _ramp(side, 0.010, 0.014) * _ramp(look.brow_length - side, -0.001, 0.003)
    return (
        look.brow_strength
        * _ramp(half - np.abs(y - middle), -0.0008, 0.0010)
        * ends
        * _ramp(z, 0.09, 0.1)
    )


def _eye_distance(points: Array) -> Array:
    """Distance (M,) to the nearer eyeball's centre, in eyeball radii."""
    mirrored = np.column_stack([np.abs(points[:, 0]), points[:, 1:]])
    return np.linalg.norm(mirrored - EYE_CENTRE, axis=1) / EYE_RADIUS


def paint_skin(points: Array, ear: Array, look: Look) -> Array:
    """Unlit colours (M, 3) of skin and hair at canonical points (M, 3)."""
    x, y, z = points.T
    side = np.abs(x)
    colour = np.tile(look.skin, (len(points), 1))
    cheeks = np.exp(-(((side - 0.04) / 0.016) ** 2) - ((y - 0.697) / 0.014) ** 2) * _ramp(
        z, 0.08, 0.11
    )
    nose = np.exp(-((x / 0.012) ** 2) - ((y - 0.693) / 0.01) ** 2) * _ramp(z, 0.14, 0.155)
    colour = _mix(
        colour,
        look.skin * (1.02, 0.76, 0.72),
        np.clip(look.blush * (cheeks + 0.7 * nose) + 0.3 * ear, 0, 1),
    )
    # Hollows that the plain light model cannot darken: nostrils, the line between the lips, under
    # the chin.
    nostrils = np.exp(-(((side - 0.0085) / 0.0042) ** 2) - ((y - 0.6865) / 0.0028) ** 2) * _ramp(
        0.1555 - z, 0, 0.004
    )
    colour *= (1 - 0.65 * nostrils - 0.22 * _ramp(0.635 - y, 0, 0.03) * _ramp(0.15 - z, 0, 0.03))[
        :, None
    ]
    colour = _mix(colour, look.hair * 0.9, look.beard * beard_mask(points, ear, look))
    colour = _mix(colour, look.lips, lip_mask(points))
    parting = (
        _ramp(0.0011 - np.abs(y - 0.6608), 0, 0.0008)
        * _ramp(0.0255 - side, 0, 0.002)
        * _ramp(z, 0.115, 0.125)
    )
    cavity = (
        _ramp(0.139 - z, 0, 0.003)
        * _ramp(0.026 - side, 0, 0.002)
        * _ramp(y, 0.650, 0.655)
        * _ramp(0.672 - y, 0, 0.005)
    )
    colour *= (1 - 0.6 * parting)[:, None] * (1 - 0.75 * cavity)[:, None]
    colour = _mix(colour, look.brow, brow_mask(points, look))
    return _paint_hair(_paint_lids(colour, points, look), points, ear, look)


def _paint_lids(colour: Array, points: Array, look: Look) -> Array:
    """Dark lashes along the upper lid's edge, a rosy rim below; shade in the socket."""
    distance, y = _eye_distance(points), points[:, 1]
    rim = _ramp(1.13 - distance, 0, 0.05)
    upper = _ramp(y - (EYE_CENTRE[1] - 0.0005), 0, 0.0015)
    colour = _mix(
        colour, look.skin * 0.25, rim * (look.lashes * upper + 0.45 * look.lashes * (1 - upper))
    )
    socket = np.exp(-(((distance - 1.1) / 0.35) ** 2)) * _ramp(points[:, 2], 0.1, 0.12)
    return colour * (1 - 0.12 * socket)[:, None]


def _paint_hair(colour: Array, points: Array, ear: Array, look: Look) -> Array:
    """Hair with streaks that run from the crown down; a bald head keeps a faint shadow of it."""
    x, y, z = points.T
    around = np.arctan2(x, z - 0.055)
    streaks = (
        np.sin(23 * around + look.phase)
        + np.sin(41 * around + 90 * y + 2 * look.phase)
        + np.sin(67 * around - 60 * y)
    )
    margin = hair_margin(points, ear, look) + 0.0012 * streaks
    shaved = look.hair_thickness == 0
    tone = look.hair * (1 + look.strands * streaks / 1.5)[:, None]
    return _mix(
        colour,
        tone,
        (0.18 if shaved else 1.0) * _ramp(margin, -0.001, 0.003 if not shaved else 0.012),
    )


def paint_eye(directions: Array, look: Look) -> Array:
    """Unlit colours (M, 3) on the eyeball; directions (M, 3) are relative to the gaze (+z through
    the pupil).
    """
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    angle = np.arccos(np.clip(unit[:, 2], -1, 1))
    spokes = np.sin(17 * np.arctan2(unit[:, 1], unit[:, 0]) + look.phase)
    iris = (
        look.iris * (0.85 + 0.35 * _ramp(look.iris_size - angle, 0.0, 0.3) + 0.08 * spokes)[:, None]
    )
    iris = _mix(iris, look.iris * 0.35, _ramp(angle, look.iris_size - 0.09, look.iris_size))
    colour = _mix(
        np.tile(look.sclera, (len(unit), 1)),
        look.sclera * (1.0, 0.86, 0.84),
        _ramp(angle, 0.7, 1.2),
    )
    colour = _mix(colour, iris, _ramp(angle, look.iris_size + 0.03, look.iris_size - 0.03))
    colour = _mix(colour, np.array([0.02, 0.02, 0.02]), _ramp(angle, 0.21, 0.17))
    # The upper lid's shadow, and the light's reflection.
    colour *= (1 - 0.35 * _ramp(unit[:, 1], 0.12, 0.5))[:, None]
    glint = np.linalg.norm(unit - np.array([0.17, 0.2, 0.965]), axis=1)
    return _mix(colour, np.ones(3), 0.9 * _ramp(glint, 0.11, 0.06))


def paint(tags: Array, look: Look) -> Array:
    """Unlit colours (M, 3) of points with attributes (M, 5): canonical or eyeball coordinates, ear,
    part.
    """
    eye = tags[:, 4] > 0.5
    colours = np.empty((len(tags), 3))
    colours[eye] = paint_eye(tags[eye, :3], look)
    colours[~eye] = paint_skin(tags[~eye, :3], tags[~eye, 3], look)
    return np.clip(colours, 0, 1)


KEY = np.array([0.38, 0.55, 0.74]) / np.linalg.norm([0.38, 0.55, 0.74])
FILL = np.array([-0.75, 0.15, 0.65]) / np.linalg.norm([-0.75, 0.15, 0.65])


def light(normals: Array) -> Array:
    """Light (M, 3) of a soft key from the head's upper left, a weak fill from its right, and the
    sky; shadows are warm, as on skin.
    """
    key = np.clip((normals @ KEY + 0.25) / 1.25, 0, 1)
    fill = np.clip((normals @ FILL + 0.3) / 1.3, 0, 1)
    brightness = 0.36 + 0.09 * normals[:, 1] + 0.60 * key + 0.16 * fill
    return np.maximum(brightness, 0.05)[:, None] ** (0.88, 1.04, 1.12)
