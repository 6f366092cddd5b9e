"""Where a command computes."""

from __future__ import annotations

import click
import torch

from torch_utils.devices import choose_device


def _chosen(ctx: click.Context, param: click.Parameter, name: str) -> torch.device:
    try:
        return choose_device(name)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    callback=_chosen,
    help="Where to compute.",
)
