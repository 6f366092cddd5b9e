"""Cost of volume rendering against its sizes, as a picture: python -m benchmarks.render_cost [--out
FILE] [--json FILE].

Needs matplotlib, which comes with the extra `dev`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.render_rays import METHODS, PATHS, Scene, Size
from benchmarks.timing import json_option, median_seconds, repeats_option, show
from dnnlib.console import HELP, UserError, run_cli

BASE = Size()
SWEEPS: dict[str, tuple[str, tuple[int, ...]]] = {
    "rendering resolution": ("resolution", (32, 64, 128, 256)),
    "samples a ray (both passes)": ("samples", (12, 24, 48, 96)),
    "batch": ("batch", (1, 2, 4, 8, 16)),
}
LARGEST_COMPOSABLE = 64 * 64 * 96 * 4  # samples; beyond, the composable path takes gigabytes


def sample_count(size: Size) -> int:
    """Samples of a call, both passes."""
    return size.batch * size.resolution**2 * 2 * size.samples


def measure(size: Size, repeats: int) -> dict[str, float]:
    """Seconds by path and kind of call."""
    scene = Scene(size)
    paths = {
        label: path
        for label, path in PATHS.items()
        if label != "composable" or sample_count(size) <= LARGEST_COMPOSABLE
    }
    cases = {
        f"{label}, {title}": scene.on(path, method)
        for label, path in paths.items()
        for title, method in METHODS.items()
    }
    return median_seconds(cases, repeats)


def sweep(repeats: int) -> list[dict[str, Any]]:
    """One row a point of each axis."""
    columns = [f"{label}, {title}" for label in PATHS for title in METHODS]
    rows = []
    for axis, (field, values) in SWEEPS.items():
        for value in values:
            seconds = measure(replace(BASE, **{field: value}), repeats)
            shown = value * 2 if field == "samples" else value
            rows.append(
                {
                    "axis": axis,
                    "value": shown,
                    **{column: seconds.get(column, float("nan")) for column in columns},
                }
            )
    return rows


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Three panels, one an axis; straight lines of slope one or two are what should be seen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    columns = [name for name in rows[0] if name not in ("axis", "value")]
    for panel, axis in zip(panels, SWEEPS, strict=True):
        points = [row for row in rows if row["axis"] == axis]
        for i, column in enumerate(columns):
            style = {
                "color": f"C{i % 2}",
                "linestyle": "-" if column.startswith("fused") else ":",
                "marker": "o",
            }
            panel.loglog(
                [p["value"] for p in points], [p[column] for p in points], label=column, **style
            )
        panel.set_xlabel(axis)
        panel.set_xticks([p["value"] for p in points], [str(p["value"]) for p in points])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(columns),
        fontsize="small",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)


@click.command(context_settings=HELP)
@repeats_option(3)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/media/render_cost.png"),
)
@json_option
def main(repeats: int, out: Path, json_path: Path | None) -> None:
    """Measure, print and draw; one sample, resolution 64 and 48 + 48 samples where not varied,
    planes 256 x 256 x 32.
    """
    rows = sweep(repeats)
    show("Volume rendering, seconds", rows, json_path)
    draw(rows, out)


if __name__ == "__main__":
    run_cli(main)
