"""upfirdn2d beside a clone and beside its reference: python -m benchmarks.upfirdn2d [--json FILE]
[--repeats N].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.timing import json_option, median_seconds, repeats_option, show
from dnnlib.console import HELP
from torch_utils.ops import library
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d, upfirdn2d_reference

CASES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "2x up": ((8, 128, 128, 128), {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}),
    "filter": ((8, 64, 129, 129), {"padding": 1, "gain": 4.0}),
    "2x down": ((8, 64, 128, 128), {"down": 2, "padding": 1}),
    "2x down, 96 channels": ((8, 96, 128, 128), {"down": 2, "padding": 1}),
    "2x up, colours": ((8, 3, 256, 256), {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}),
}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def passes(
    operator: Callable[..., torch.Tensor], x: torch.Tensor, options: dict[str, Any]
) -> dict[str, Callable[[], object]]:
    """A forward pass that keeps what the backward pass needs, and a backward pass."""
    filter = setup_filter([1, 3, 3, 1])
    x = x.detach().requires_grad_()
    y = operator(x, filter, **options)
    grad = torch.randn_like(y)
    return {
        "forward": lambda: operator(x, filter, **options),
        "backward": lambda: torch.autograd.grad(y, x, grad, retain_graph=True),
    }


def measure(name: str, layout: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of the table for one case: times, and ratios to a clone of the operator's result, or of
    its input where that is larger.
    """
    size, options = CASES[name]
    x = torch.randn(size).to(DTYPES[dtype], memory_format=LAYOUTS[layout])
    with library.path("cpp"):
        ours = passes(upfirdn2d, x, options)
    plain = passes(upfirdn2d_reference, x, options)
    y = upfirdn2d(x, setup_filter([1, 3, 3, 1]), **options)
    larger = max(x, y, key=torch.numel)
    seconds = {}
    for direction in ours:
        cases = {"ours": ours[direction], "clone": larger.clone, "reference": plain[direction]}
        with library.path("cpp"):
            seconds[direction] = median_seconds(cases, repeats)
    case = {"case": name, "layout": layout, "dtype": dtype}
    return [
        case
        | {
            "pass": direction,
            "ms": times["ours"] * 1e3,
            "clone_ms": times["clone"] * 1e3,
            "to_clone": times["ours"] / times["clone"],
            "to_reference": times["ours"] / times["reference"],
        }
        for direction, times in seconds.items()
    ]


@click.command(context_settings=HELP)
@json_option
@repeats_option(7)
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice(list(CASES)),
    default=list(CASES),
    help="May be repeated.",
)
def main(json_path: Path | None, repeats: int, names: tuple[str, ...]) -> None:
    """Time forward and backward passes with the filter [1, 3, 3, 1] in both memory formats."""
    rows = [
        row
        for name in names
        for layout in LAYOUTS
        for dtype in DTYPES
        for row in measure(name, layout, dtype, repeats)
    ]
    show(
        "upfirdn2d; ratios of medians, to a clone of result or input, the larger one, and to the"
        " reference",
        rows,
        json_path,
    )


if __name__ == "__main__":
    main()
