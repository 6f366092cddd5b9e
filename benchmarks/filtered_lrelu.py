"""filtered_lrelu on the layers of the alias-free super-resolution: python -m
benchmarks.filtered_lrelu [--json FILE] [--repeats N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

from benchmarks.timing import json_option, median_seconds, repeats_option, show
from dnnlib.console import HELP
from torch_utils.ops import library
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from training.networks.alias_free import AliasFreeLayer, plan_bands

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Network:
    """Sizes of a super-resolution: samples a batch, rate of the input, its channels, rates and
    channels of the blocks.
    """

    batch: int
    input_resolution: int
    in_channels: int
    sizes: tuple[int, ...]
    channels: tuple[int, ...]


NETWORKS = {
    "512": Network(1, 128, 32, (256, 512), (128, 64)),
    "laptop 64": Network(4, 32, 32, (64, 64), (64, 32)),
}


def layers(network: Network) -> list[tuple[AliasFreeLayer, torch.Tensor]]:
    """Layers with an input each."""
    bands = plan_bands(network.input_resolution, list(network.sizes))
    result, channels = [], network.in_channels
    for index in range(2 * len(network.sizes)):
        out_channels = network.channels[index // 2]
        layer = AliasFreeLayer(
            channels, out_channels, 16, bands[index], bands[index + 1], conv_clamp=256.0
        ).requires_grad_(False)
        result.append(
            (layer, torch.randn(network.batch, channels, bands[index].size, bands[index].size))
        )
        channels = out_channels
    return result


def both_passes(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """A forward pass that keeps what the backward pass needs, and a backward pass."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    y = function(*inputs)
    grad = torch.randn_like(y)
    return {
        "forward": lambda: function(*inputs),
        "backward": lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True),
    }


def cases(
    layer: AliasFreeLayer, features: torch.Tensor, with_reference: bool
) -> dict[str, dict[str, Callable[[], object]]]:
    """By pass, then by name: the operator, the convolution before it, and the chain of plain
    operators.
    """
    weight = layer.weight.to(features.dtype)
    convolve = lambda x, w: F.conv2d(x, w, padding=1)  # noqa: E731
    x = convolve(features, weight)

    def activate(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        filters, padding = (layer.up_filter, layer.down_filter), layer.padding
        return filtered_lrelu(
            x, *filters, bias, layer.up, layer.down, padding, clamp=layer.conv_clamp
        )

    with library.path("cpp"):
        runs = {
            "ours": both_passes(activate, x, layer.bias),
            "conv": both_passes(convolve, features, weight),
        }
    if with_reference:
        with library.path("reference"):
            runs["reference"] = both_passes(activate, x, layer.bias)
    return {
        direction: {name: run[direction] for name, run in runs.items()}
        for direction in ("forward", "backward")
    }


def measure(
    name: str, layout: str, dtype: str, repeats: int, with_reference: bool
) -> list[dict[str, Any]]:
    """Rows of the table for one network."""
    rows = []
    for index, (layer, features) in enumerate(layers(NETWORKS[name])):
        features = features.to(DTYPES[dtype], memory_format=LAYOUTS[layout])
        for direction, runs in cases(layer, features, with_reference).items():
            forced_off = {
                key: in_plain_pytorch(run) if key == "reference" else run
                for key, run in runs.items()
            }
            with library.path("cpp"):
                seconds = median_seconds(forced_off, repeats)
            row = {
                "network": name,
                "layer": index,
                "layout": layout,
                "dtype": dtype,
                "pass": direction,
                "ms": seconds["ours"] * 1e3,
            }
            row |= {"conv_ms": seconds["conv"] * 1e3, "to_conv": seconds["ours"] / seconds["conv"]}
            rows.append(
                row | {"to_reference": seconds["ours"] / seconds["reference"]}
                if with_reference
                else row
            )
    return rows


def in_plain_pytorch(run: Callable[[], object]) -> Callable[[], object]:
    """`run` without the compiled operators that the reference is made of."""

    def wrapped() -> object:
        with library.path("reference"):
            return run()

    return wrapped


@click.command(context_settings=HELP)
@json_option
@repeats_option(5)
@click.option(
    "--network",
    "names",
    multiple=True,
    type=click.Choice(list(NETWORKS)),
    default=list(NETWORKS),
    help="May be repeated.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(list(LAYOUTS)),
    default=["channels-last"],
    help="May be repeated.",
)
@click.option(
    "--no-reference",
    is_flag=True,
    help="Leave out the chain of plain operators, which takes most of the time.",
)
def main(
    json_path: Path | None,
    repeats: int,
    names: tuple[str, ...],
    layouts: tuple[str, ...],
    no_reference: bool,
) -> None:
    """Time forward and backward passes beside the layer's bare convolution and beside the
    reference.
    """
    rows = [
        row
        for name in names
        for layout in layouts
        for dtype in DTYPES
        for row in measure(name, layout, dtype, repeats, not no_reference)
    ]
    show(
        "filtered_lrelu; ratios of medians, to the layer's convolution and to the reference",
        rows,
        json_path,
    )


if __name__ == "__main__":
    main()
