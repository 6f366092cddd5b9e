"""Addresses that restore a view of the viewer: what they say comes back, nonsense does nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.viewer.camera import ZOOM_LIMITS, camera_of, orbit_of
from media.viewer.links import from_query, orbit_values, read_orbit, read_value, to_query
from media.viewer.view_renderer import ViewRenderer
from tests.media.viewer.test_view_renderer import tiny_generator
from training.cameras import cameras_of

FRONT: dict[str, Any] = {"yaw": 0.1, "pitch": -0.05, "zoom": 1.0, "shift": (0.0, 0.0, 0.0)}
ORBITS = st.fixed_dictionaries(
    {
        "yaw": st.floats(-math.pi, math.pi),
        "pitch": st.floats(-1.5, 1.5),
        "zoom": st.floats(*ZOOM_LIMITS),
        "shift": st.tuples(*[st.floats(-1, 1)] * 3),
    }
)


@given(ORBITS, st.sampled_from([1e-6, 1.0, 1e6]))
def test_an_orbit_comes_back(orbit: dict[str, Any], unit: float) -> None:
    orbit = {**orbit, "shift": tuple(unit * part for part in orbit["shift"])}
    found = read_orbit(from_query(to_query(orbit_values(orbit, FRONT, unit))), FRONT, unit)
    for name in ("yaw", "pitch", "zoom", "shift"):
        size = unit if name == "shift" else 1.0
        assert found[name] == pytest.approx(orbit[name], abs=1e-3 * size)


@given(ORBITS, st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_camera_on_an_orbit_is_found_there(orbit: dict[str, Any], unit: float) -> None:
    """In any unit of the world."""
    generator = tiny_generator()
    cameras = cameras_of(generator)
    generator.cameras = dataclasses.replace(cameras, radius=unit * cameras.radius).to_dict()
    generator.rendering.box_warp *= unit
    renderer = ViewRenderer(generator)
    orbit = {**orbit, "shift": tuple(unit * part for part in orbit["shift"])}
    position, target = camera_of(orbit, renderer)
    found = orbit_of(position, target, renderer)
    assert found is not None
    for name in ("yaw", "pitch", "zoom", "shift"):
        size = unit if name == "shift" else 1.0
        assert found[name] == pytest.approx(orbit[name], abs=1e-6 * size)


@given(st.text(), st.sampled_from([3, 0.5, True, (1, 2), "depth"]))
def test_nonsense_is_of_the_right_kind(text: str, example: Any) -> None:
    value = read_value(text, example, ("depth", "raw"))
    assert type(value) is type(example)
    if isinstance(example, str):
        assert value in ("depth", "raw")
    if isinstance(example, tuple):
        assert [type(part) for part in value] == [int, int]
    if isinstance(example, float):
        assert math.isfinite(value)


@given(st.text(st.characters(codec="utf-8"), max_size=3000))
def test_any_address_is_read(query: str) -> None:
    orbit = read_orbit(from_query(query), FRONT, 1.0)
    assert all(math.isfinite(value) for value in (*orbit["shift"], orbit["yaw"], orbit["zoom"]))


def test_a_fresh_page_has_an_empty_link() -> None:
    assert to_query(orbit_values(FRONT, FRONT, 1.0)) == ""
    assert from_query("&" * 1000) == {}
