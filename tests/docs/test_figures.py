"""Numbers about the shipped model: what the pages quote is what was measured, of this very file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs import measure_model
from metrics.names import parse_metrics
from metrics.weights import file_hash

ROOT = Path(__file__).parents[2]
CONTENT = json.loads((ROOT / "models" / "figures.json").read_text(encoding="utf-8"))
FIGURES: dict[str, float] = CONTENT["figures"]
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Passages that quote, with what stands in the file.
QUOTES = {
    "models/README.md": [
        "| `--data heads64.zip --metrics fid1k_lite0` | {fid1k_lite0:.1f} |",
        "Fréchet distance {fid2k_lite0:.1f}, kernel distance {kid2k_lite0:.4f} ±"
        " {kid2k_lite0_std:.4f}, precision {pr2k3_lite0_precision:.2f}, recall"
        " {pr2k3_lite0_recall:.2f}, inception score {is2k_lite0:.2f} |",
        "{consistency64_psnr_raw:.1f} dB between views of the rendering,"
        " {consistency64_psnr_image:.1f} dB of the picture, {share:.0f} % of the surface",
        "relief {relief64_relief:.2f}, deviation of depth {relief64_depth_spread:.3f}",
        "relief {depth200_relief_ratio:.2f} of the true heads', error"
        " {depth200_depth_error:.2f} ({depth200_depth_error_unscaled:.2f} unscaled), overlap"
        " {depth200_overlap:.2f}",
        "yaw off by {pose96_yaw_error:.1f} degrees, pitch by {pose96_pitch_error:.1f} (mean, after"
        " the common offset of {pose96_yaw_offset:.1f} and {pose96_pitch_offset:.1f})",
        "{speed_frames_per_second_cached_planes:.0f} frames a second with cached planes,"
        " {speed_frames_per_second_every_frame:.0f} without",
    ],
}


def text_of(page: Path) -> str:
    return " ".join(page.read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("page", "quote"), [(p, q) for p, quotes in QUOTES.items() for q in quotes]
)
def test_quotes_are_what_was_measured(page: str, quote: str) -> None:
    shown = quote.format(**FIGURES, share=100 * FIGURES["consistency64_share"])
    assert shown in text_of(ROOT / page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_says_otherwise(page: Path) -> None:
    """A metric's name followed by a number quotes it."""
    for name, value in re.findall(r"\b([a-z]{2,3}\d+k\d?_lite0)`?:? (\d+\.\d+)", text_of(page)):
        digits = len(value.partition(".")[2])
        assert f"{FIGURES[name]:.{digits}f}" == value, f"{name} in {page.name}"


def test_they_are_of_this_model() -> None:
    """Where this fails, the model is another one: run docs/measure_model.py."""
    assert CONTENT["network_sha256"] == file_hash(ROOT / CONTENT["network"])


def test_the_script_measures_what_is_quoted() -> None:
    groups = measure_model.GROUPS.values()
    names = {metric.name for group in groups for metric in parse_metrics(group.metrics)}
    quoted = set(re.findall(r"\{(\w+):", " ".join(map(str, QUOTES.values())))) - {"share"}
    for figure in quoted:
        assert any(figure == name or figure.startswith(f"{name}_") for name in names), figure
