"""Networks of the published FFHQ-512 size beside their convolutions and matrix products alone:
python -m benchmarks.networks [--json FILE].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.floor import products_alone
from benchmarks.timing import (
    batch_option,
    json_option,
    median_seconds,
    repeats_option,
    resolution_option,
    show,
)
from dnnlib.console import HELP
from torch_utils.memory import keep_freed_memory
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.config.presets import make_config
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cases(
    resolution: int, batch: int, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is timed: by name, a pass, and the pass whose convolutions it is compared with."""
    config = make_config("ffhq", resolution, "published").model
    G, D = (
        Generator(config).eval().requires_grad_(False),
        Discriminator(config).eval().requires_grad_(False),
    )
    G.set_conv_dtype(backbone=dtype, superresolution=dtype)
    D.set_conv_dtype(dtype)
    angles = torch.linspace(-0.4, 0.4, batch)
    c = pack_label(orbit_pose(angles, angles / 2, 2.7), pinhole_intrinsics(4.2647))
    ws = G.mapping(torch.randn(batch, G.z_dim), c)
    planes = G.planes(ws)
    features = torch.randn(batch, config.generator.plane_channels, 64, 64)
    image, raw = torch.randn(batch, 3, resolution, resolution), torch.randn(batch, 3, 64, 64)
    enlarge = lambda: G.superresolution(features, ws, "none")  # noqa: E731
    passes = {
        "planes": lambda: G.planes(ws),
        "super-resolution": enlarge,
        "discriminator": lambda: D(image, raw, c),
        "frame at 64, planes cached": lambda: G.render(planes, ws, c, 64),
    }
    return {name: (run, enlarge if "frame" in name else run) for name, run in passes.items()}


def measure(precision: str, resolution: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the table for one precision."""
    rows = []
    for name, (run, with_same_convolutions) in cases(resolution, batch, DTYPES[precision]).items():
        seconds = median_seconds(
            {"whole": run, "bare": products_alone(with_same_convolutions)}, repeats
        )
        rows.append(
            {
                "pass": name,
                "precision": precision,
                "seconds": seconds["whole"],
                "alone": seconds["bare"],
            }
        )
        rows[-1]["ratio"] = seconds["whole"] / seconds["bare"]
    return rows


@click.command(context_settings=HELP)
@resolution_option(512, 128, 256, 512)
@batch_option(1)
@repeats_option(7)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(list(DTYPES)),
    default=list(DTYPES),
    help="May be repeated.",
)
@json_option
def main(
    resolution: str, batch: int, repeats: int, precisions: tuple[str, ...], json_path: Path | None
) -> None:
    """Time planes, super-resolution, discriminator and a frame, forward, and the convolutions and
    products in them alone.
    """
    keep_freed_memory()
    with torch.no_grad():  # in inference mode operators are not recorded as they run
        rows = [
            row
            for precision in precisions
            for row in measure(precision, int(resolution), batch, repeats)
        ]
    show(f"{resolution} pixels, batch {batch}", rows, json_path)


if __name__ == "__main__":
    main()
