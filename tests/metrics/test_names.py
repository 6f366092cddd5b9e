"""Names of metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.names import VALID_FORMS, parse_metric, parse_metrics


@pytest.mark.parametrize(
    ("name", "kind", "count", "is_full", "neighbours", "detector"),
    [
        ("fid50k_full", "fid", 50_000, True, 3, "inception"),
        ("fid2k", "fid", 2000, False, 3, "inception"),
        ("kid50k_full", "kid", 50_000, True, 3, "inception"),
        ("pr50k3_full", "pr", 50_000, True, 3, "inception"),
        ("pr2k5", "pr", 2000, False, 5, "inception"),
        ("pr1203", "pr", 120, False, 3, "inception"),
        ("coverage2k5_lite0", "coverage", 2000, False, 5, "lite0"),
        ("coverage50k5_full", "coverage", 50_000, True, 5, "inception"),
        ("fid3d2k_lite1", "fid3d", 2000, False, 3, "lite1"),
        ("traits2k_lite0", "traits", 2000, False, 3, "lite0"),
        ("normals200_lite0", "normals", 200, False, 3, "lite0"),
        ("shape64", "shape", 64, False, 3, None),
        ("is50k", "is", 50_000, False, 3, "inception"),
        ("fid500_full_lite0", "fid", 500, True, 3, "lite0"),
        ("ppl2_wend", "ppl", 50_000, False, 3, None),
        ("ppl2_wend2k", "ppl", 2000, False, 3, None),
        ("consistency64", "consistency", 64, False, 3, None),
        ("strict", "strict", 256, False, 3, None),
        ("speed", "speed", 1, False, 3, None),
    ],
)
def test_published_names(
    name: str, kind: str, count: int, is_full: bool, neighbours: int, detector: str | None
):
    metric = parse_metric(name)
    assert (metric.name, metric.kind, metric.count, metric.is_full) == (name, kind, count, is_full)
    assert (metric.neighbours, metric.detector) == (neighbours, detector)


@given(st.integers(2, 9999), st.booleans(), st.booleans(), st.sampled_from(["fid", "kid"]))
def test_any_number_of_pictures(count: int, in_thousands: bool, is_full: bool, kind: str):
    metric = parse_metric(f"{kind}{count}{'k' * in_thousands}{'_full' * is_full}")
    assert metric.count == count * (1000 if in_thousands else 1)
    assert metric.is_full == is_full


def test_figures_of_another_network_carry_its_name():
    assert [
        metric.name
        for metric in parse_metrics(["fid2k", "pr2k3_full", "ppl2_wend", "is20"], "lite0")
    ] == [
        "fid2k_lite0",
        "pr2k3_full_lite0",
        "ppl2_wend",
        "is20_lite0",
    ]
    assert parse_metric("fid2k_lite0", "lite0").name == "fid2k_lite0"
    assert len(parse_metrics(["fid2k", "fid2k_lite0", "fid2k"])) == 2


@pytest.mark.parametrize(
    "name",
    [
        "fid",
        "fid0",
        "fid1",
        "fid-5",
        "fid2K",
        "fid2k_x",
        "pr50k",
        "coverage5",
        "fid3d",
        "fid2k_lite2",
        "is5k_full",
        "is9",
        "fvd2k",
        "",
        "fid99999k",
    ],
)
def test_anything_else_is_refused(name: str):
    with pytest.raises(ValueError, match=r"fid|is|pr") as caught:
        parse_metric(name)
    assert VALID_FORMS in str(caught.value) or "number of pictures" in str(caught.value)


def test_no_name_at_all():
    with pytest.raises(ValueError, match="no metric is named"):
        parse_metrics([])
