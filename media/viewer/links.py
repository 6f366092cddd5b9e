"""The address of a view: what differs from a fresh page, as a query such as seed=3&yaw=20. Anybody
may type one, so whatever makes no sense is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from media.viewer.camera import ZOOM_LIMITS, bounded

LONGEST = 2000  # characters
LARGEST = 1e9  # number in an address
PITCH_LIMIT = 89.0  # degrees


def to_query(values: Mapping[str, Any]) -> str:
    """Values of controls and of a camera, by name."""
    return urlencode({name: _text(value) for name, value in values.items()}, safe=",")


def from_query(query: str) -> dict[str, str]:
    """Texts by name; empty for what is no query."""
    try:
        return dict(parse_qsl(query[:LONGEST], max_num_fields=100))
    except ValueError:
        return {}


def read_value(text: str, example: Any, options: tuple[str, ...] = ()) -> Any:
    """The value of `text`, of the type that `example` has; a name must be one of `options`, else
    `example` stays.
    """
    if isinstance(example, str):
        return text if text in options else example
    if isinstance(example, bool):
        return text == "1"
    if isinstance(example, (tuple, list)):
        parts = text.split(",")
        if len(parts) != len(example):
            return example
        return tuple(read_value(*pair) for pair in zip(parts, example, strict=True))
    number = bounded(text, -LARGEST, LARGEST, float(example))
    return round(number) if isinstance(example, int) else number


def orbit_values(
    orbit: Mapping[str, Any], frontal: Mapping[str, Any], unit: float
) -> dict[str, Any]:
    """What of a camera's orbit (`orbit_of`) is another than in front, angles in degrees, lengths
    in the `unit` (the side of the box), so that the same digits tell them in any world.
    """
    shown, usual = _in_degrees(orbit, unit), _in_degrees(frontal, unit)
    return {name: value for name, value in shown.items() if _text(value) != _text(usual[name])}


def read_orbit(
    values: Mapping[str, str], frontal: Mapping[str, Any], unit: float
) -> dict[str, Any]:
    """The reverse: an orbit within limits."""
    start = _in_degrees(frontal, unit)
    found = {name: read_value(values.get(name, ""), start[name]) for name in start}
    pitch = bounded(found["pitch"], -PITCH_LIMIT, PITCH_LIMIT, 0.0)
    return {
        "yaw": math.radians(found["yaw"]),
        "pitch": math.radians(pitch),
        "zoom": bounded(found["zoom"], *ZOOM_LIMITS, 1.0),
        "shift": tuple(part * unit for part in found["shift"]),
    }


def _in_degrees(orbit: Mapping[str, Any], unit: float) -> dict[str, Any]:
    return {
        "yaw": math.degrees(orbit["yaw"]),
        "pitch": math.degrees(orbit["pitch"]),
        "zoom": float(orbit["zoom"]),
        "shift": tuple(float(value) / unit for value in orbit["shift"]),
    }


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return ",".join(_text(part) for part in value)
    return f"{round(float(value), 3) + 0.0:.10g}"
