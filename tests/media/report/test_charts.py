"""Charts: what lies where, read back from the SVG."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.report.charts import MOST_POINTS, Chart, draw_chart, thinned, ticks

finite = st.floats(-1e9, 1e9, allow_subnormal=False)


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw_chart(chart))


def lines_in(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Points of each line in the picture."""
    texts = [line.attrib["points"].split() for line in svg.iter("polyline")]
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in points)] for points in texts
    ]


def labels_of(svg: ElementTree.Element, anchor: str) -> dict[float, float]:
    """Numbers beside an axis: value to place along it."""
    key = "y" if anchor == "end" else "x"
    found = {}
    for text in svg.iter("text"):
        if text.attrib["text-anchor"] == anchor and text.text and text.text != "kimg":
            found[float(text.text)] = float(text.attrib[key])
    return found


def test_points_lie_where_the_axes_say():
    points = [(0.0, 5.0), (10.0, 35.0), (40.0, 20.0)]
    svg = drawn(Chart("FID", {"fid": points}))
    (places,) = lines_in(svg)
    x_labels, y_labels = labels_of(svg, "middle"), labels_of(svg, "end")
    (x0, x1), (y0, y1) = (
        sorted(x_labels)[:: len(x_labels) - 1],
        sorted(y_labels)[:: len(y_labels) - 1],
    )
    assert x0 <= 0
    assert x1 >= 40
    assert y0 <= 5
    assert y1 >= 35
    for (x, y), (across, down) in zip(points, places, strict=True):
        assert across == pytest.approx(
            x_labels[x0] + (x - x0) / (x1 - x0) * (x_labels[x1] - x_labels[x0]), abs=0.2
        )
        # Labels stand a little below their line.
        assert down == pytest.approx(
            y_labels[y0] - 4.5 + (y - y0) / (y1 - y0) * (y_labels[y1] - y_labels[y0]), abs=0.2
        )
    assert [title.text for title in svg.iter("title")] == [
        "fid 5 at 0",
        "fid 35 at 10",
        "fid 20 at 40",
    ]


def test_names_are_text_and_never_markup():
    chart = Chart('<b>"&', {"<i>": [(0, 1), (1, 2)]})
    svg = drawn(chart)
    assert svg.attrib["aria-label"] == '<b>"&'
    assert next(svg.iter("title")).text == "<i> 1 at 0"


def test_what_is_not_finite_leaves_a_gap_and_nothing_says_so():
    svg = drawn(Chart("x", {"a": [(0, 1), (1, math.nan), (2, math.inf), (3, 4)], "b": []}))
    assert [len(line) for line in lines_in(svg)] == [2, 0]
    assert "no values" in draw_chart(Chart("x", {"a": [(0, math.nan)]}))
    assert "no values" in draw_chart(Chart("x", {}))


def test_one_point_is_a_dot_in_the_middle():
    svg = drawn(Chart("x", {"a": [(5, 0.25)]}))
    assert len(list(svg.iter("circle"))) == 1


@given(finite, finite)
def test_ticks_enclose_the_values_and_are_even(a: float, b: float):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-12)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    steps = [second - first for first, second in itertools.pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6, abs=slack)


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 1234])
def test_long_lines_are_averaged(count: int):
    points = [(float(index), 2.0 * index + 1) for index in range(count)]
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert all(y == pytest.approx(2 * x + 1) for x, y in found)
    if count <= MOST_POINTS:
        assert found == points
