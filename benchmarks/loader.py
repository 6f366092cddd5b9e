"""How fast pictures reach training: decoders compared, then the loader itself: python -m
benchmarks.loader [--json FILE].

torchvision comes with torch-fidelity. OpenCV, simplejpeg and imagecodecs are measured where they
are installed.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import median_seconds, show
from data_tools.sinks import image_name, open_sink, write_labels
from dnnlib.console import HELP
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.data.dataset import ImageDataset
from training.data.order import ItemOrder, read_batches
from training.data.pictures import decode_picture

ENCODINGS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1},
    "JPEG": {"quality": 95},
    "WEBP": {"quality": 95},
}
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
DIFFERENT = 64  # pictures that are repeated under other names
BATCH = 32
MOST_BYTES = 256 << 20  # of files written for one measurement

Decoder = Callable[[bytes], Any]


def photographs(resolution: int, count: int) -> list[np.ndarray]:
    """Parts (resolution, resolution, 3) of photographs that come with scikit-image: about as hard
    to decode as portraits.
    """
    import skimage.data

    random = np.random.RandomState(0)
    sources = [
        Image.fromarray(getattr(skimage.data, name)())
        for name in ("astronaut", "coffee", "chelsea", "rocket")
    ]
    parts = []
    for index in range(count):
        source = sources[index % len(sources)]
        side = random.uniform(0.5, 1) * min(source.size)
        left, top = (random.uniform(0, length - side) for length in source.size)
        parts.append(
            np.asarray(
                source.resize(
                    (resolution, resolution),
                    Image.Resampling.LANCZOS,
                    box=(left, top, left + side, top + side),
                )
            )
        )
    return parts


def encode(picture: np.ndarray, encoding: str) -> bytes:
    """File content."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, encoding, **ENCODINGS[encoding])
    return file.getvalue()


def write_data(dest: Path, files: list[bytes], suffix: str, count: int) -> None:
    """A data set of `count` pictures, which repeat `files`."""
    names = [image_name(index, suffix) for index in range(count)]
    label = pack_label(orbit_pose(0.1, 0.0, 2.7), pinhole_intrinsics(4.2647)).numpy()
    with open_sink(dest) as sink:
        for index, name in enumerate(names):
            sink.write(name, files[index % len(files)])
        write_labels(sink, names, np.tile(label, (count, 1)))


# --------------------------------------------------------------------------------------------------
# Decoders alone


def decoders(encoding: str) -> dict[str, Decoder]:
    """Ways to decode a file to RGB pixels, by name, as far as their packages are here."""
    found: dict[str, Decoder] = {
        "Pillow": lambda data: decode_picture(io.BytesIO(data), "benchmark")
    }
    with contextlib.suppress(ImportError):
        from torchvision.io import ImageReadMode, decode_image

        if encoding != "WEBP" or _works(
            lambda: decode_image(_bytes(encode(photographs(32, 1)[0], "WEBP")), ImageReadMode.RGB)
        ):
            found["torchvision"] = lambda data: decode_image(_bytes(data), ImageReadMode.RGB)
    with contextlib.suppress(ImportError):
        import cv2

        found["OpenCV"] = lambda data: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    with contextlib.suppress(ImportError):
        import imagecodecs

        found["imagecodecs"] = {
            "PNG": imagecodecs.png_decode,
            "JPEG": imagecodecs.jpeg8_decode,
            "WEBP": imagecodecs.webp_decode,
        }[encoding]
    if encoding == "JPEG":
        with contextlib.suppress(ImportError):
            import simplejpeg

            found["simplejpeg"] = simplejpeg.decode_jpeg
    return found


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decode_all(decode: Decoder, files: list[bytes]) -> None:
    for data in files:
        decode(data)


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


def measure_decoders(resolution: int, repeats: int) -> list[dict[str, Any]]:
    """Rows: images for each second of the processor's time of each decoder, in one thread, and how
    far its pixels are from Pillow's.
    """
    rows = []
    pictures = photographs(resolution, 16)
    for encoding in ENCODINGS:
        files = [encode(picture, encoding) for picture in pictures]
        cases = decoders(encoding)
        seconds = median_seconds(
            {name: partial(_decode_all, run, files) for name, run in cases.items()},
            repeats,
            clock=time.process_time,
        )
        plain = cases["Pillow"](files[0]).astype(int)
        for name, run in cases.items():
            pixels = np.asarray(run(files[0])).astype(int)
            pixels = pixels.transpose(1, 2, 0) if name == "torchvision" else pixels
            row = {
                "pixels": resolution,
                "format": encoding,
                "decoder": name,
                "images/s": len(files) / seconds[name],
            }
            rows.append(
                {
                    **row,
                    "of Pillow": seconds["Pillow"] / seconds[name],
                    "largest difference": int(np.abs(pixels - plain).max()),
                }
            )
    return rows


# --------------------------------------------------------------------------------------------------
# The loader


def loader_rate(data: Path, workers: int, seconds: float) -> float:
    """Images a second of shuffled batches once the workers are running."""
    dataset = ImageDataset(data)

    def order() -> Iterator[np.ndarray]:
        stream = ItemOrder(len(dataset), 0)
        for first in itertools.count(step=BATCH):
            yield stream.items(first, BATCH)

    batches = read_batches(dataset, order(), workers)
    try:
        for _ in range(2 + 2 * workers):  # those decoded ahead while the workers started
            next(batches)
        # With workers the time that passes counts; alone the processor's, which other programs do
        # not disturb.
        clock = time.perf_counter if workers else time.process_time
        start, count = clock(), 0
        while clock() - start < seconds:
            images, _ = next(batches)
            count += len(images)
        return count / (clock() - start)
    finally:
        batches.close()


def measure_loader(resolution: int, seconds: float) -> list[dict[str, Any]]:
    """Rows: images a second from ZIP and folder, by file format and number of workers."""
    rows = []
    pictures = photographs(resolution, DIFFERENT)
    for encoding in ENCODINGS:
        files = [encode(picture, encoding) for picture in pictures]
        count = min(4096, max(DIFFERENT, MOST_BYTES * len(files) // sum(map(len, files))))
        with tempfile.TemporaryDirectory() as folder:
            for place in ("data.zip", "data"):
                dest = Path(folder) / place
                write_data(dest, files, SUFFIXES[encoding], count)
                rates = {
                    f"{workers} workers": loader_rate(dest, workers, seconds)
                    for workers in (0, 1, 2)
                }
                kind = "ZIP" if place.endswith(".zip") else "folder"
                size = sum(map(len, files)) / len(files) / 1000
                rows.append(
                    {"pixels": resolution, "format": encoding, "from": kind, "kB": size, **rates}
                )
    return rows


@click.command(context_settings=HELP)
@click.option(
    "--resolution",
    "resolutions",
    multiple=True,
    type=click.Choice(["64", "256", "512"]),
    default=["64", "256", "512"],
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    help="For each rate of the loader.",
)
@click.option("--repeats", type=click.IntRange(1), default=7, help="Runs of each decoder.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Also write the figures to this file.",
)
def main(
    resolutions: tuple[str, ...], seconds: float, repeats: int, json_path: Path | None
) -> None:
    """Images a second of decoders, and of batches of 32 from ZIP and folder with 0, 1 and 2
    workers.

    Decoders and 0 workers: for each second of the processor's time. Workers: for each second that
    passes.
    """
    torch.set_num_threads(1)
    sizes = [int(text) for text in resolutions]
    alone = [row for size in sizes for row in measure_decoders(size, repeats)]
    show("Decoders, one thread", alone)
    loaded = [row for size in sizes for row in measure_loader(size, seconds)]
    show(f"Loader, batches of {BATCH}", loaded)
    if json_path:
        json_path.write_text(json.dumps({"decoders": alone, "loader": loaded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
