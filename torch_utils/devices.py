"""Where a command computes."""

from __future__ import annotations

import click
import torch


def choose_device(ctx: click.Context, param: click.Parameter, name: str) -> torch.device:
    """The device of that name; auto = CUDA where there is a GPU, else the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise click.BadParameter(f"this machine has no {name} device; choose --device cpu", ctx, param)
    return torch.device(name)


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    callback=choose_device,
    help="Where to compute.",
)
