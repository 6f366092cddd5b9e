"""True traits of the built-in heads: a person's colours, hair and face as numbers.

Classes are one number each, 1 where the head is of it and 0 where not. Lightness and redness are L*
and a* of CIE L*a*b*. Measures of the face are distances between landmarks of anthropometry (Farkas,
Anthropometry of the Head and Face, 1994) over the head's height from chin to crown without hair,
because all heads are drawn about equally high.
"""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2lab

from data_tools.heads.basis import HeadBasis
from data_tools.heads.paint import HAIR_TONES, IRIS_TONES
from data_tools.heads.person import Person, coarse_points
from data_tools.heads.render import Array

# Landmarks of the left half and the middle of the mean head, in its canonical metres.
LANDMARKS = {
    "vertex": (0, 0.8491, 0.0696),
    "nasion": (0, 0.7323, 0.1506),
    "pronasale": (0, 0.6938, 0.1680),
    "subnasale": (0, 0.6789, 0.1563),
    "alare": (0.0155, 0.6887, 0.1547),
    "labiale_superius": (0, 0.6683, 0.1602),
    "stomion": (0, 0.6608, 0.1553),
    "labiale_inferius": (0, 0.6488, 0.1556),
    "cheilion": (0.0230, 0.6629, 0.1463),
    "sublabiale": (0, 0.6430, 0.1491),
    "pogonion": (0, 0.6327, 0.1499),
    "gnathion": (0, 0.6177, 0.1403),
    "gonion": (0.0538, 0.6526, 0.0909),
    "zygion": (0.0694, 0.7075, 0.0831),
    "endocanthion": (0.0165, 0.7275, 0.1390),
    "exocanthion": (0.0464, 0.7290, 0.1336),
    "palpebrale_superius": (0.0311, 0.7332, 0.1411),
    "palpebrale_inferius": (0.0311, 0.7234, 0.1403),
}
X, Y, Z = range(3)


def person_traits(basis: HeadBasis, person: Person) -> dict[str, float]:
    """Traits of a person by name, with four digits."""
    traits = {**_origins(person), **_colours(person), **_hair(person), **_face(basis, person)}
    return {name: float(f"{value:.4g}") for name, value in traits.items()}


def _origins(person: Person) -> dict[str, float]:
    """0 male, young .. 1 female, old; shares of origins; 0..1 slight .. heavy."""
    names = {"gender": "female", "age": "age", "weight": "weight"}
    origins = ("african", "asian", "caucasian")
    return {new: person.origins[old] for old, new in names.items()} | {
        name: person.origins[name] for name in origins
    }


def _colours(person: Person) -> dict[str, float]:
    look = person.look
    (skin, _, _), (_, lips, _) = rgb2lab(np.stack([look.skin, look.lips]))
    eyes = {name: float(name == look.iris_class) for name in IRIS_TONES}
    return {
        "skin_lightness": skin,
        "lip_redness": lips,
        "eyes_dark": eyes["brown"] + eyes["dark"],
        "eyes_green": eyes["hazel"] + eyes["green"],
        "eyes_blue": eyes["blue"] + eyes["grey"],
    }


def _hair(person: Person) -> dict[str, float]:
    """Bald, or one of the colours; thickness in millimetres, the hairline's height in per cent of
    the mean head's; beard and moustache as shares of hair over skin.
    """
    look = person.look
    bald = look.hair_thickness == 0
    colours = {f"hair_{name}": float(name == look.hair_class and not bald) for name in HAIR_TONES}
    return {
        "bald": float(bald),
        **colours,
        "hair_thickness": 1000 * look.hair_thickness,
        "hairline_height": 1000 * (look.hairline_lift + look.hairline_recede),
        "beard": look.beard,
        "moustache": look.beard * look.moustache,
        "brow_thickness": 1000 * look.brow_width,
    }


def _face(basis: HeadBasis, person: Person) -> dict[str, float]:
    """Measures of nose, mouth, chin, jaw and eyes over the head's height."""
    mean, places = basis.template[: basis.skin_count], np.array(list(LANDMARKS.values()))
    rows = np.square(mean[:, None] - places).sum(2).argmin(0)
    points: Array = coarse_points(basis, person, rows).astype(np.float64)
    at = dict(zip(LANDMARKS, points, strict=True))

    def above(upper: str, lower: str, axis: int = Y) -> float:
        return float(at[upper][axis] - at[lower][axis])

    measures = {
        "nose_length": above("nasion", "subnasale"),
        "nose_width": 2 * at["alare"][X],
        "nose_protrusion": above("pronasale", "subnasale", Z),
        "nose_bridge": above("nasion", "endocanthion", Z),
        "mouth_width": 2 * at["cheilion"][X],
        "mouth_height": above("labiale_superius", "labiale_inferius"),
        "mouth_corners": above("cheilion", "stomion"),
        "philtrum_height": above("subnasale", "labiale_superius"),
        "chin_height": above("sublabiale", "gnathion"),
        "chin_protrusion": above("pogonion", "subnasale", Z),
        "jaw_width": 2 * at["gonion"][X],
        "cheek_width": 2 * at["zygion"][X],
        "face_height": above("nasion", "gnathion"),
        "eye_distance": at["endocanthion"][X] + at["exocanthion"][X],
        "eye_opening": above("palpebrale_superius", "palpebrale_inferius"),
    }
    height = above("vertex", "gnathion")
    return {name: float(value) / height for name, value in measures.items()}
