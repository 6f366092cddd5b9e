"""From the page's free camera to one on the data's orbit. What comes from a page is not to be
trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from media.viewer.view_renderer import ViewRenderer

ZOOM_LIMITS = (0.3, 10.0)
ASPECT_LIMITS = (0.25, 4.0)
REACH = 1.0  # how far the pivot may be moved, in box sides


def orbit_of(position: Any, look_at: Any, renderer: ViewRenderer) -> dict[str, Any] | None:
    """`yaw`, `pitch`, `zoom` and `shift` of a `View` for a camera at `position` that looks at
    `look_at`; None for nonsense.
    """
    eye, target = (_vector(place, renderer.distance) for place in (position, look_at))
    if eye is None or target is None:
        return None
    distance = float(np.linalg.norm(eye - target))
    if not distance > 1e-6 * renderer.distance:
        return None
    x, y, z = (eye - target) / distance
    reach = REACH * renderer.generator.rendering.box_warp
    shift = np.clip(target - renderer.cameras.pivot, -reach, reach)
    return {
        "yaw": math.atan2(x, z),
        "pitch": math.asin(min(max(y, -1.0), 1.0)),
        "zoom": min(max(renderer.distance / distance, ZOOM_LIMITS[0]), ZOOM_LIMITS[1]),
        "shift": tuple(float(value) for value in shift),
    }


def camera_of(orbit: Mapping[str, Any], renderer: ViewRenderer) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of `orbit_of`: where a camera stands and what it looks at."""
    yaw, pitch = orbit["yaw"], orbit["pitch"]
    outward = (math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch))
    target = np.asarray(renderer.cameras.pivot) + orbit["shift"]
    return target + renderer.distance / orbit["zoom"] * np.array(outward), target


def aspect_of(width: Any, height: Any) -> float:
    """Width of the window in heights, within what a window may be; 1 for nonsense."""
    return bounded(
        bounded(width, 0, 1e5, 1) / max(bounded(height, 0, 1e5, 1), 1), *ASPECT_LIMITS, 1.0
    )


def bounded(value: Any, low: float, high: float, otherwise: float) -> float:
    """Clamp a number to two limits; `otherwise` stands for anything that is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return min(max(number, low), high) if math.isfinite(number) else otherwise


def _vector(value: Any, unit: float) -> np.ndarray | None:
    """A place (3,), no farther than can be told from nonsense; `unit` is the usual distance."""
    if not isinstance(value, (tuple, list, np.ndarray)) or np.ndim(value) != 1 or len(value) != 3:
        return None
    numbers = np.array([bounded(part, -1e6 * unit, 1e6 * unit, math.nan) for part in value])
    return numbers if np.isfinite(numbers).all() else None
