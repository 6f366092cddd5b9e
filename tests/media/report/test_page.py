"""The report's parts from plain data: numbers, protocol, curves from files, pictures."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from media.pictures import grids
from media.pictures.grids import data_uri
from media.report.page import Block, Figure, Report, Section, Shown, report_page
from media.report.sections import (
    GRID_COLUMNS,
    GRID_ROWS,
    curves_section,
    metric_charts,
    realism_sections,
    samples_section,
    statistics_charts,
)
from metrics.realism import Realism
from metrics.reals import RealImages
from tests.metrics.scenes import Scene, sampler_of
from training.run.saving import snapshot_kimg


class Texts(HTMLParser):
    """Texts and pictures of a page; complains of tags that do not close."""

    VOID = ("meta", "link", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def decoded(uri: str | None) -> Image.Image:
    assert uri is not None
    kind, content = uri.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    return image


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


# --------------------------------------------------------------------------------------------------
# The page


def test_page_holds_all_it_was_given():
    picture = noise(5, 7, 3)
    figures = [
        Figure(
            "fid2k",
            {"fid2k": 12.3456789},
            {"fakes": 2000, "device": "cpu", "detector_sha256": "ab" * 32, "mirror": True},
            "lower is better",
        ),
        Figure(
            "pr2k3",
            {"precision": 0.5, "recall": None},
            {"fakes": 2000, "device": "cpu", "neighbours": 3, "truncation_cutoff": None},
        ),
    ]
    section = Section(
        "Pictures <i>",
        "what they & are",
        blocks=[Block([Shown(picture, 'a "picture"', "seed <7>")], 2, "Most", "those")],
    )
    page = report_page(Report("Figures of <b>", {"Network": "a&b.pkl"}, figures, [section]))
    found = Texts(page)
    text = "\n".join(found.texts)
    for words in (
        "Figures of <b>",
        "a&b.pkl",
        "12.346",
        "0.5",
        "not defined",
        "neighbours",
        "Pictures <i>",
        "what they & are",
        "seed <7>",
    ):
        assert words in text
    assert text.count("2000") == 1  # what both share is told once
    assert "truncation cutoff" not in text
    assert "abababababababab…abababab" in text
    assert 'title="' + "ab" * 32 in page
    (image,) = found.images
    assert image["alt"] == 'a "picture"'
    assert np.array_equal(np.asarray(decoded(image["src"])), picture)


def test_nothing_is_loaded_from_elsewhere():
    page = report_page(
        Report(
            "x",
            {},
            [Figure("a", {"a": 1.0}, {})],
            [Section("y", blocks=[Block([Shown(noise(4, 4, 3), "p")])])],
        )
    )
    for word in ("http://", "https://", "<script", "@import", "url("):
        assert word not in page


def test_large_pictures_are_jpeg(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grids, "LARGE_PIXELS", 99)
    assert decoded(data_uri(noise(9, 11, 3))).format == "PNG"
    large = decoded(data_uri(np.full((10, 11, 3), 77, np.uint8)))
    assert large.format == "JPEG"
    assert abs(int(np.asarray(large)[3, 3, 0]) - 77) <= 2


# --------------------------------------------------------------------------------------------------
# Curves


def line(
    kimg: float | None, value: float | None, network: str = "x.pkl", **protocol: Any
) -> dict[str, Any]:
    results = {"fid2k": value, "fid2k_std": 1.0}
    return {
        "metric": "fid2k",
        "results": results,
        "protocol": {"seed": 0, "network_sha256": f"{kimg}", **protocol},
        "network": network,
        "kimg": kimg,
    }


def test_a_curve_joins_results_of_one_protocol():
    lines = [
        line(1, 90.0),
        line(2, 50.0),
        line(2, 45.0),  # measured again
        line(None, 40.0, "runs/network-snapshot-000003.pkl"),
        line(None, 1.0, "elsewhere.pkl"),
        line(4, None),
        line(5, 30.0, seed=1),
        line(6, 20.0, device="cuda"),
    ]
    (chart,) = metric_charts(lines, {"seed": 0, "truncation_cutoff": None}, snapshot_kimg)
    assert chart.title == "fid2k"
    assert chart.lines == {"fid2k": [(1, 90.0), (2, 45.0), (3.0, 40.0), (6, 20.0)]}
    (chart,) = metric_charts(lines[:-1], None, snapshot_kimg)  # the newest result's protocol
    assert chart.lines == {"fid2k": [(5, 30.0)]}


def test_curves_of_a_folder(tmp_path: Path):
    (tmp_path / "metric-fid2k.jsonl").write_text(
        "\n".join(json.dumps(line(k, 10.0 - k)) for k in (1, 2)) + '\n{"cut": of'
    )
    (tmp_path / "metric-kid2k.jsonl").write_text(
        json.dumps({**line(1, 3.0), "metric": "kid2k", "results": {"kid2k": 3.0}}) + "\n"
    )
    statistics = [
        {"kimg": k, "Loss/G": 1.0 + k, "Loss/D": 2.0, "Augment/p": 0.0, "Other": 5} for k in (1, 2)
    ]
    (tmp_path / "stats.jsonl").write_text(
        "\n".join(map(json.dumps, statistics)) + '\n{"kimg": 3, "Loss'
    )
    section = curves_section(
        [tmp_path, tmp_path, tmp_path / "none"], {"kid2k": {"seed": 0}}, snapshot_kimg
    )
    assert [chart.title for chart in section.charts] == ["kid2k", "fid2k", "Losses"]
    assert section.charts[2].lines == {"G": [(1.0, 2.0), (2.0, 3.0)], "D": [(1.0, 2.0), (2.0, 2.0)]}
    assert statistics_charts(tmp_path / "absent") == []
    assert "no results" in curves_section([tmp_path / "none"], {}, snapshot_kimg).text


# --------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("has_random_noise", [False, True])
def test_samples_are_the_fakes_that_are_measured(has_random_noise: bool):
    sampler = sampler_of(Scene(size=16, raw=8), seed=5, has_random_noise=has_random_noise)
    section = samples_section(sampler, batch=7)
    pictures, depth = section.blocks[0].pictures
    expected = sampler(0, GRID_ROWS * GRID_COLUMNS).movedim(1, -1).numpy()
    for index in (0, 7, 8, 31):
        row, column = divmod(index, GRID_COLUMNS)
        cell = slice(row * 16, row * 16 + 16), slice(column * 16, column * 16 + 16)
        assert np.array_equal(pictures.picture[cell], expected[index])
        # the sphere is in the middle, the background in the corners
        assert depth.picture[cell][8, 8, 0] > 0
        assert depth.picture[cell][0, 0, 0] == 0
    assert "5 to 36" in section.text


def test_samples_beside_reals():
    sampler = sampler_of(Scene(size=16, raw=8), seed=3)
    pictures = noise(6, 3, 16, 16)
    import torch

    reals = RealImages(
        6,
        16,
        "key",
        lambda indices: torch.from_numpy(pictures[indices]),
        names=("a/0.png", "a/1.png", "a/2.png"),
    )
    distances = np.random.RandomState(0).permutation(40)[:20].reshape(20, 1) + np.array(
        [[0.5, 50, 60]]
    )
    indices = np.random.RandomState(1).randint(0, 6, (20, 3))
    realism = Realism("lite0", "0" * 64, distances, indices, np.full(9, 10.0), 4, 6)
    extremes, memory = realism_sections(sampler, reals, realism)
    order = np.argsort(distances[:, 0])
    most, least = extremes.blocks
    assert [shown.alt for shown in most.pictures] == [
        f"Sample of seed {3 + index}" for index in order[:8]
    ]
    assert [shown.alt for shown in least.pictures] == [
        f"Sample of seed {3 + index}" for index in order[::-1][:8]
    ]
    assert np.array_equal(
        most.pictures[2].picture, sampler(int(order[2]), 1)[0].movedim(0, -1).numpy()
    )
    shown = memory.blocks[0].pictures
    assert memory.blocks[0].columns == 4
    place = int(indices[order[1], 2])
    assert np.array_equal(shown[4 + 3].picture, pictures[place].transpose(1, 2, 0))
    assert shown[4 + 3].caption.startswith(
        f"{place % 3}.png" + (" (mirrored)" if place >= 3 else "")
    )
    assert f"{np.median(distances[:, 0]) / 10:.2f} times" in memory.text
    assert "4 of 6" in memory.text
