"""Nearest real pictures: against plain loops, and told apart: copies, strangers and pictures of the
same kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import realism
from metrics.options import MetricOptions
from metrics.realism import compare_with_reals, nearest
from metrics.reals import RealImages
from tests.metrics.test_evaluate import mean_colour_detector


@pytest.mark.parametrize(
    ("rows", "columns", "count"), [(1024, 8192, 4), (3, 5, 4), (7, 1, 1), (2, 30, 30)]
)
def test_nearest_is_a_plain_search(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, count: int
):
    monkeypatch.setattr(realism, "ROWS", rows)
    monkeypatch.setattr(realism, "COLUMNS", columns)
    random = np.random.RandomState(0)
    points, others = random.randn(10, 6), random.randn(30, 6)
    distances, indices = nearest(torch.from_numpy(points), torch.from_numpy(others), count)
    for i, point in enumerate(points):
        exact = np.array([np.sqrt(((point - other) ** 2).sum()) for other in others])
        assert indices[i].tolist() == np.argsort(exact)[:count].tolist()
        np.testing.assert_allclose(distances[i], np.sort(exact)[:count], rtol=1e-9)


def pictures_of(seed: int, count: int) -> Tensor:
    """Plain colours."""
    colours = np.random.RandomState(seed).randint(0, 256, (count, 3, 1, 1)).astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(colours, (count, 3, 8, 8)).copy())


class Pictures:
    """A sampler of given pictures."""

    protocol: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def __call__(self, start: int, count: int) -> Tensor:
        return self.pictures[start : start + count]


def test_copies_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr(realism, "load_detector", mean_colour_detector)
    own = pictures_of(0, 200)
    reals = RealImages(200, 8, "colours", lambda indices: own[torch.from_numpy(indices)])
    options = MetricOptions(batch=16, detector="lite0")
    places = np.random.RandomState(5).permutation(200)[:30]
    copies = compare_with_reals(
        Pictures(own[torch.from_numpy(places)]), reals, options, "lite0", 30, None
    )
    assert copies.indices[:, 0].tolist() == places.tolist()
    assert copies.ratio == 0
    assert (copies.reals, copies.data_pictures) == (200, 200)
    others = compare_with_reals(Pictures(pictures_of(1, 60)), reals, options, "lite0", 60, None)
    assert 0.7 < others.ratio < 1.4
    mixed = torch.cat([pictures_of(1, 20), own[places[:1]], pictures_of(2, 20)])
    assert compare_with_reals(Pictures(mixed), reals, options, "lite0", 41, None).order[0] == 20
    part = compare_with_reals(Pictures(own[reals.chosen(50)[:10]]), reals, options, "lite0", 10, 50)
    assert part.indices[:, 0].tolist() == reals.chosen(50)[:10].tolist()
    assert part.reals == 50
