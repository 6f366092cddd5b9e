"""Interleaved timing of alternatives and their presentation."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch

json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the figures to this file.",
)


def repeats_option(default: int) -> Callable[[Any], Any]:
    """--repeats: measurements of each case."""
    kind = click.IntRange(1)
    text = "Measurements of each case; the median counts."
    return click.option("--repeats", type=kind, default=default, help=text)


def batch_option(default: int) -> Callable[[Any], Any]:
    """--batch: samples of a step or pass."""
    return click.option("--batch", type=click.IntRange(1), default=default, help="Samples at once.")


def resolution_option(default: int, *choices: int) -> Callable[[Any], Any]:
    """--resolution: pixels of the pictures, as text."""
    kind = click.Choice([str(choice) for choice in choices])
    text = "Pixels of the pictures."
    return click.option("--resolution", type=kind, default=str(default), help=text)


def median_seconds(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time of each case by `clock`. Cases take turns, so that a slow minute of the machine
    hits all of them.
    """
    for _ in range(warmup):
        for run in cases.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, rows: list[dict[str, Any]], json_path: Path | None = None) -> None:
    """Print rows, which all have the same keys, as a table; write them to `json_path` too where
    that is given.
    """
    texts = [
        {
            key: f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in row.items()
        }
        for row in rows
    ]
    widths = {key: max(len(key), *(len(text[key]) for text in texts)) for key in rows[0]}
    click.echo(f"{title} ({torch.get_num_threads()} threads, torch {torch.__version__})")
    click.echo("  ".join(key.ljust(width) for key, width in widths.items()))
    for text in texts:
        click.echo("  ".join(text[key].ljust(width) for key, width in widths.items()))
    if json_path is not None:
        json_path.write_text(
            json.dumps({"title": title, "threads": torch.get_num_threads(), "rows": rows}, indent=1)
            + "\n"
        )
