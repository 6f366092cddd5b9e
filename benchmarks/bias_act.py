"""Bias and leaky ReLU beside a plain copy and the reference: python -m benchmarks.bias_act [--json
FILE].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.timing import json_option, median_seconds, repeats_option, show
from dnnlib.console import HELP, UserError, run_cli
from torch_utils.ops import bias_act, library

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cases(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Callable[[], object]]:
    """What is timed: copies, sums (two reads and one write, which a backward pass cannot do
    without), and either path.
    """
    x = torch.randn(shape).to(dtype=dtype, memory_format=layout)
    grad = torch.randn_like(x)
    runs: dict[str, Callable[[], object]] = {"clone": x.clone, "add": lambda: torch.add(x, grad)}
    for path in ("cpp", "reference"):
        runs[f"{path} forward"], runs[f"{path} backward"] = passes(path, x, grad)
    return runs


def passes(path: str, x: Tensor, grad: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward, and backward to input and bias."""
    leaf, bias = x.detach().requires_grad_(), torch.zeros(x.shape[1], requires_grad=True)

    def forward() -> Tensor:
        with library.path(path):
            return bias_act(leaf, bias, act="lrelu", clamp=256)

    output = forward()

    def backward() -> object:
        return torch.autograd.grad(output, (leaf, bias), grad, retain_graph=True)

    return torch.no_grad()(forward), backward


@click.command(context_settings=HELP)
@click.option(
    "--size",
    type=click.IntRange(1),
    default=256,
    help="Height and width of the images, 8 of 128 channels.",
)
@repeats_option(7)
@json_option
def main(size: int, repeats: int, json_path: Path | None) -> None:
    """Milliseconds, and multiples of the time of x.clone()."""
    if not library.load():
        raise UserError(
            library.failure()
            or f"{library.VARIABLE}=reference: there is nothing to compare; leave it unset"
        )
    rows: list[dict[str, Any]] = []
    for layout_name, layout in LAYOUTS.items():
        for dtype_name, dtype in DTYPES.items():
            times = median_seconds(cases((8, 128, size, size), dtype, layout), repeats)
            for name, seconds in times.items():
                rows.append(
                    {
                        "layout": layout_name,
                        "dtype": dtype_name,
                        "case": name,
                        "ms": seconds * 1e3,
                        "clones": seconds / times["clone"],
                    }
                )
    show(f"bias_act, lrelu and clamp, 8x128x{size}x{size}", rows, json_path)


if __name__ == "__main__":
    run_cli(main)
