"""A long run of tiny networks: memory, open files and speed must stay flat: python -m
benchmarks.soak [--json FILE] [--plot FILE.png].

Runs train.py as a person would, with checkpoints and pictures all the way, and looks at its
processes from outside.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.timing import json_option, show
from dnnlib.console import HELP
from tests.tiny import SETTINGS, write_dataset

ROOT = Path(__file__).parents[1]
PICTURES = 64
WARM_SHARE = 0.25  # of the run: allocators and caches fill up in the beginning


def command(data: Path, outdir: Path, iterations: int, batch: int, processes: int) -> list[str]:
    """A run whose every twentieth iteration is a tick and whose every hundredth is a checkpoint."""
    tick = 20 * batch / 1000
    options = [
        "--cfg",
        "shapenet",
        "--gpus",
        "0",
        "--procs",
        processes,
        "--batch",
        batch,
        "--precision",
        "fp32",
        "--aug",
        "ada",
    ]
    options += [
        "--kimg",
        iterations * batch / 1000,
        "--tick",
        tick,
        "--snap",
        5,
        "--nrr-initial",
        8,
        "--nrr-final",
        8,
        "--keep",
        3,
    ]
    settings = [text for setting in SETTINGS for text in ("--set", setting)]
    return [
        sys.executable,
        str(ROOT / "train.py"),
        "--data",
        str(data),
        "--outdir",
        str(outdir),
        *map(str, options),
        *settings,
    ]


def training_processes(launcher: psutil.Process, processes: int) -> list[psutil.Process]:
    """Those that train: the launcher, or what it has spawned."""
    if processes == 1:
        return [launcher]
    return [child for child in launcher.children() if "spawn_main" in " ".join(child.cmdline())]


def look(process: psutil.Process) -> dict[str, float]:
    """Memory (MiB), open files, threads and seconds of computing of one process."""
    with process.oneshot():
        times = process.cpu_times()
        seen = {
            "mib": process.memory_info().rss / 2**20,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }
    return {**seen, "cpu": times.user + times.system}


def watch(
    process: subprocess.Popen[bytes], outdir: Path, processes: int, seconds: float
) -> list[dict[str, Any]]:
    """Looks at the training processes until they end: kimg of the last tick and what `look` sees of
    each.
    """
    looks, launcher = [], psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(seconds)
        stats = last_tick(outdir)
        try:
            seen = [look(each) for each in training_processes(launcher, processes)]
        except psutil.Error:
            continue
        if stats and len(seen) == processes:
            looks.append({"kimg": stats["kimg"], "processes": seen})
    return looks


def ticks(outdir: Path) -> list[dict[str, float]]:
    """All statistics of the run."""
    return [
        json.loads(line)
        for path in outdir.glob("*/stats.jsonl")
        for line in path.read_text().splitlines()
    ]


def last_tick(outdir: Path) -> dict[str, float] | None:
    """The newest statistics, if there are any."""
    found = ticks(outdir)
    return found[-1] if found else None


def growth(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of y over x, by least squares."""
    return float(np.polyfit(x, y, 1)[0])


def summarise(
    looks: list[dict[str, Any]], speeds: list[tuple[float, float]], batch: int
) -> list[dict[str, Any]]:
    """A row a process: growth after the warm part, a thousand iterations each."""
    kimg = np.array([each["kimg"] for each in looks])
    late = kimg >= WARM_SHARE * kimg.max()
    iterations = kimg * 1000 / batch
    middle = np.median(iterations[late])
    halves = late & (iterations < middle), late & (iterations >= middle)
    speed = float(np.median([value for _, value in speeds]))
    rows = []
    for index in range(len(looks[0]["processes"])):
        series = {
            name: np.array([each["processes"][index][name] for each in looks])[late]
            for name in ("mib", "files", "threads")
        }
        cpu = np.array([each["processes"][index]["cpu"] for each in looks])
        early, end = (growth(iterations[half], cpu[half]) * 1000 for half in halves)
        rows.append(
            {
                "process": index,
                "MiB": float(np.median(series["mib"])),
                "MiB/1000 it": growth(iterations[late], series["mib"]) * 1000,
                "files": f"{series['files'].min()}..{series['files'].max()}",
                "files/1000 it": growth(iterations[late], series["files"]) * 1000,
                "threads": f"{series['threads'].min()}..{series['threads'].max()}",
                "CPU ms/it early": early,
                "CPU ms/it late": end,
                "img/s": speed,
            }
        )
    return rows


def cost(iterations: list[float], cpu: list[float]) -> tuple[list[float], list[float]]:
    """CPU milliseconds an iteration between ticks; seconds on the clock tell more about what else a
    machine does.
    """
    firsts = dict(zip(reversed(iterations), reversed(cpu), strict=True))
    places = sorted(firsts)
    return places[1:], [
        1000 * (firsts[b] - firsts[a]) / (b - a) for a, b in itertools.pairwise(places)
    ]


def plot(path: Path, looks: list[dict[str, Any]], batch: int) -> None:
    """Memory, open files and the cost of an iteration, in the course of a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True)
    iterations = [each["kimg"] * 1000 / batch for each in looks]
    for axis, name, label in ((axes[0], "mib", "memory, MiB"), (axes[1], "files", "open files")):
        for index in range(len(looks[0]["processes"])):
            axis.plot(
                iterations,
                [each["processes"][index][name] for each in looks],
                label=f"process {index}",
            )
        axis.set(ylabel=label, ylim=(0, None))
        axis.legend(loc="lower right")
    for index in range(len(looks[0]["processes"])):
        places, costs = cost(iterations, [each["processes"][index]["cpu"] for each in looks])
        axes[2].plot(places, costs, ".", markersize=3, label=f"process {index}")
    axes[2].set(ylabel="CPU ms an iteration", xlabel="iteration", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


@click.command(context_settings=HELP)
@click.option("--iterations", type=click.IntRange(200), default=2000, help="Length of the run.")
@click.option("--batch", type=click.IntRange(4), default=8, help="Samples an iteration.")
@click.option("--procs", type=click.IntRange(1), default=2, help="Training processes.")
@click.option(
    "--every", type=click.FloatRange(0, min_open=True), default=1.0, help="Seconds between looks."
)
@json_option
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw them.")
def main(
    iterations: int,
    batch: int,
    procs: int,
    every: float,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Train for long, and see whether anything grows."""
    with tempfile.TemporaryDirectory() as folder:
        outdir = Path(folder) / "runs"
        arguments = command(
            write_dataset(Path(folder) / "blots.zip", PICTURES), outdir, iterations, batch, procs
        )
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        looks = watch(process, outdir, procs, every)
        if process.wait():
            raise click.ClickException(f"training ended with exit status {process.returncode}")
        speeds = [(line["kimg"], line["Progress/images_per_second"]) for line in ticks(outdir)]
    show(
        f"{iterations} iterations, {procs} process(es), batch {batch}",
        summarise(looks, speeds, batch),
        json_path,
    )
    if plot_path is not None:
        plot(plot_path, looks, batch)


if __name__ == "__main__":
    main()
