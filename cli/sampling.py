"""Options of the command lines that render seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from cli.devices import device_option
from cli.rendering import (
    network_option,
    nrr_option,
    outdir_option,
    precision_option,
    trunc_cutoff_option,
    trunc_option,
)
from cli.values import Seeds
from open_eg3d.opening import open_generator
from training.networks.generator import Generator

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class SamplingRequest:
    """Values of `sampling_options`, by their names."""

    network: str
    seeds: list[int]
    outdir: Path
    trunc: float
    trunc_cutoff: int | None
    nrr: int | None
    precision: str
    device: torch.device

    def generator(self) -> Generator:
        """Open the network.

        Raises:
            UserError: if it cannot be read.
        """
        return open_generator(self.network, self.device, self.precision)


def sampling_options(seeds: str) -> Callable[[F], F]:
    """Add the options of `SamplingRequest` to a command; `seeds` is the default of --seeds."""
    help_text = "Which latents: 0-10 or 1,5,7-9."
    options = (
        network_option,
        click.option("--seeds", type=Seeds(), default=seeds, show_default=True, help=help_text),
        outdir_option,
        trunc_option,
        trunc_cutoff_option,
        nrr_option,
        precision_option,
        device_option,
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add
