"""Recipes side by side on equal minutes, or pictures: python -m benchmarks.recipe --outdir DIR.

Every run is train.py in one thread, from several seeds, on pictures of 32 pixels: the built-in
heads, and toy vehicles. What is done is not done again, so a comparison can be stopped and
continued, and variants can be added to it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import demo
from benchmarks.recipe.disturbed import error_degrees, write_disturbed
from benchmarks.recipe.vehicles import write_vehicles
from benchmarks.timing import show
from data_tools.heads.dataset import HeadsConfig, generate_heads
from dnnlib.files import atomic_write
from metrics.results import read_results
from training.checkpoints.checkpoint import load_checkpoint
from training.data.dataset import ImageDataset
from training.run.folder import STATS_FILE
from training.run.launch import newest_snapshot
from training.run.repaired import repaired_labels

RESOLUTION = 32
METRICS = "fid2k_lite0,kid2k_lite0,pr2k3_lite0"
COLUMNS = {  # of the table, by name in the results of metrics and in the run's statistics
    "kimg": "kimg",
    "Fréchet": "fid2k_lite0",
    "precision": "pr2k3_lite0_precision",
    "recall": "pr2k3_lite0_recall",
    "spread": "Spread/pixels",
    "cameras off, degrees": "cameras",
}
PRESETS = {"heads": "heads", "vehicles": "auto"}
COMMON = (  # networks of a tenth of the laptop sizes' arithmetic; the R1 weight of --cfg auto
    "generator.plane_resolution=32",
    "discriminator.channel_base=1024",
    "training.gamma=0.0256",
)


@dataclass(frozen=True)
class Variant:
    """One recipe: what differs from the preset; `is_disturbed`: the cameras of the data."""

    settings: tuple[str, ...] = ()
    is_disturbed: bool = False


NARROW = demo.LADDER[-1].networks
BOLD = tuple(demo.settings_of(demo.LADDER[-1], RESOLUTION))  # the demo's way with them
REPAIRED = (*BOLD, "data.poses=repair")
VARIANTS = {
    "preset": Variant(),
    "constant beside z": Variant(("generator.constant_embedding=true",)),
    "gamma / 4": Variant(("training.gamma=0.0064",)),
    "gamma x 4": Variant(("training.gamma=0.1024",)),
    "with R2": Variant(("training.gamma_fakes=0.0256",)),
    "relativistic": Variant(("training.loss=relativistic", "training.gamma_fakes=0.0256")),
    "relativistic, gamma x 10": Variant(
        ("training.loss=relativistic", "training.gamma=0.256", "training.gamma_fakes=0.256")
    ),
    "finite differences": Variant(("training.penalty=finite_difference",)),
    "independent offsets": Variant(("rendering.fine_offsets=independent",)),
    "narrow": Variant(NARROW),
    "narrow, bold": Variant(BOLD),
    "true cameras, repaired": Variant(REPAIRED),
    "disturbed cameras": Variant(BOLD, is_disturbed=True),
    "disturbed cameras, repaired": Variant(REPAIRED, is_disturbed=True),
}


@dataclass(frozen=True)
class Data:
    """Pictures to train on: what they show, and how many there are."""

    kind: str
    count: int

    def made(self, outdir: Path) -> Path:
        """The data set, made the first time."""
        path = outdir / f"{self.kind}-{self.count}.zip"
        if not path.exists():
            if self.kind == "heads":
                generate_heads(path, HeadsConfig(self.count, RESOLUTION, views_per_identity=1))
            else:
                write_vehicles(path, self.count, RESOLUTION)
        return path


def trained_on(pictures: Path, variant: Variant) -> Path:
    """The data set that a variant is given."""
    if not variant.is_disturbed:
        return pictures
    path = pictures.with_stem(f"{pictures.stem}-disturbed")
    if not path.exists():
        write_disturbed(pictures, path)
    return path


@dataclass(frozen=True)
class Length:
    """Of a run: minutes, or thousands of pictures where the machine has other work beside it."""

    minutes: float | None
    kimg: float | None

    def __str__(self) -> str:
        return f"{self.minutes:g} minutes" if self.minutes else f"{self.kimg:g} kimg"


def train(
    preset: str, data: Path, variant: Variant, seed: int, length: Length, outdir: Path
) -> None:
    """Train one run in a process of its own."""
    command = ["train.py", "--outdir", outdir, "--data", data, "--cfg", preset, "--seed", seed]
    command += ["--kimg", length.kimg or 1000, "--snap", 0]
    if length.minutes:
        command += ["--minutes", length.minutes]
    settings = (*COMMON, *variant.settings)
    command += itertools.chain.from_iterable(("--set", setting) for setting in settings)
    run_python(command, outdir / "train.log")


def measure(data: Path, given: Path, run: Path) -> dict[str, float]:
    """Figures of the last checkpoint of a run on the data set `given`, by column of the table."""
    snapshot = newest_snapshot(run)
    command = ["calc_metrics.py", "--network", snapshot, "--data", data, "--metrics", METRICS]
    run_python([*command, "--outdir", run], run / "metrics.log")
    values = json.loads((snapshot.parent / STATS_FILE).read_text().splitlines()[-1])
    for name in METRICS.split(","):
        values |= read_results(run / f"metric-{name}.jsonl")[-1]["results"]
    is_repaired = load_checkpoint(snapshot).poses
    labels = repaired_labels(snapshot).labels if is_repaired else ImageDataset(given).labels
    values["cameras"] = error_degrees(labels, ImageDataset(data).labels)
    return {column: values[key] for column, key in COLUMNS.items()}


def run_python(command: Iterable[Any], log: Path) -> None:
    """Run a program of the project in one thread.

    Raises:
        click.ClickException: if it fails.
    """
    with log.open("w") as output:
        status = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise click.ClickException(f"exit status {status}; see {log}")


def figures_of(outdir: Path, data: Data, name: str, seed: int, length: Length) -> dict[str, float]:
    """Figures of one run, which is trained and measured the first time."""
    words = f"{data.count} {data.kind} {length} {name}".lower()
    run = outdir / re.sub("[^a-z0-9]+", "-", words) / str(seed)
    kept = run / "figures.json"
    if not kept.exists():
        click.echo(f"{data.kind}, {name}, seed {seed}", err=True)
        run.mkdir(parents=True, exist_ok=True)
        pictures = data.made(outdir)
        given = trained_on(pictures, VARIANTS[name])
        train(PRESETS[data.kind], given, VARIANTS[name], seed, length, run)
        figures = measure(pictures, given, run)
        with atomic_write(kept) as file:
            file.write(json.dumps(figures).encode())
    return json.loads(kept.read_text())


def row(name: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and half the range over seeds, by column."""
    cells = {}
    for column in COLUMNS:
        values = [run[column] for run in runs]
        cells[column] = f"{statistics.mean(values):.3g} ± {(max(values) - min(values)) / 2:.2g}"
    return {"recipe": name, **cells}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--outdir", type=click.Path(path_type=Path), required=True, help="For runs.")
@click.option("--minutes", type=float, help="Of each run.")
@click.option("--kimg", type=float, help="Thousands of pictures of each run, instead.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Runs of each recipe.")
@click.option("--data", type=click.Choice(["heads", "vehicles"]), default="heads")
@click.option("--pictures", type=int, default=6000, show_default=True, help="To train on.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Not all recipes.")
def main(
    outdir: Path,
    minutes: float | None,
    kimg: float | None,
    seeds: int,
    data: str,
    pictures: int,
    only: tuple[str, ...],
) -> None:
    """Train every recipe and print the table."""
    if (minutes is None) == (kimg is None):
        raise click.UsageError("choose one of --minutes and --kimg")
    length = Length(minutes, kimg)
    rows, shown = [], Data(data, pictures)
    for name in only or VARIANTS:
        runs = [figures_of(outdir, shown, name, seed, length) for seed in range(seeds)]
        rows.append(row(name, runs))
    show(f"{pictures} {data}, {length}, mean of {seeds} seeds and half their range", rows)


if __name__ == "__main__":
    main()
