"""A data set of many ZIPs: time to open it, memory of the processes that read it, pictures a
second: python -m benchmarks.shards [--pictures 2000000].
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.loader import encode, photographs, write_data
from benchmarks.timing import show
from dnnlib.console import HELP, progress
from dnnlib.files import make_dir
from training.data.order import training_batches
from training.data.shards import open_images

BATCH, PER_SHARD = 256, 10_000


def write_shards(folder: Path, pictures: int) -> None:
    """ZIPs of `PER_SHARD` JPEGs of 32 pixels."""
    first, *others = (folder / f"{i:05d}.zip" for i in range(-(-pictures // PER_SHARD)))
    write_data(
        first, [encode(picture, "JPEG") for picture in photographs(32, 64)], ".jpg", PER_SHARD
    )
    for shard in progress(others, "Writing shards", unit="ZIP"):
        shutil.copyfile(first, shard)


def measure(folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Seconds to open, and figures of reading for `seconds`."""
    start = time.perf_counter()
    dataset = open_images(folder)
    opening = time.perf_counter() - start
    batches = training_batches(dataset, BATCH, workers=workers)
    next(batches)
    until_first = time.perf_counter() - start
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches)[0])
    rate = count / (time.perf_counter() - start)
    # what a process has to itself, not what it shares with the one that started it
    own = [child.memory_full_info().uss for child in psutil.Process().children()]
    batches.close()
    return {
        "pictures": len(dataset),
        "open, s": opening,
        "first batch, s": until_first,
        "images/s": rate,
        "MB per worker": max(own, default=0) / 1e6,
        "MB of the rest": psutil.Process().memory_full_info().uss / 1e6,
    }


@click.command(context_settings=HELP)
@click.option("--pictures", type=click.IntRange(1), default=2_000_000)
@click.option("--workers", type=click.IntRange(1), default=2)
@click.option("--seconds", type=click.FloatRange(1), default=60.0)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Folder for the shards, to be used again."
)
def main(pictures: int, workers: int, seconds: float, keep: Path | None) -> None:
    """Open a new set, which makes the index, then open it again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_dir(keep or temporary)
        if not any(folder.iterdir()):
            write_shards(folder, pictures)
        rows = [{"index": state, **measure(folder, workers, seconds)} for state in ("made", "kept")]
    show(f"Batches of {BATCH}, {workers} workers", rows)


if __name__ == "__main__":
    main()
