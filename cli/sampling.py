"""Options of the command lines that render seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

from cli.devices import device_option
from cli.rendering import (
    network_option,
    nrr_option,
    outdir_option,
    sampling_precision_option,
    trunc_cutoff_option,
    trunc_option,
)
from cli.values import Commas, Edits, Seeds
from dnnlib.console import UserError
from open_eg3d import map_latents, seed_latents
from open_eg3d.opening import open_generator
from training.inversion.directions import edit_latents
from training.networks.generator import Generator

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class SamplingRequest:
    """Values of `sampling_options`, by their names."""

    network: str
    seeds: list[int] | None
    latents: list[str] | None
    edits: dict[str, float]
    outdir: Path
    trunc: float
    trunc_cutoff: int | None
    nrr: int | None
    precision: str
    device: torch.device
    _moved: Tensor | None = field(default=None, init=False)

    def generator(self) -> Generator:
        """Open the network.

        Raises:
            UserError: if it cannot be read.
        """
        return open_generator(self.network, self.device, self.precision)

    def identities(self, generator: Generator) -> list[Identity]:
        """What is shown: seeds, named latents, or both in this order.

        Raises:
            UserError: for names that the file does not hold.
        """
        chosen = [(f"seed{seed:04d}", seed) for seed in self.seeds or []]
        named = self.latents and chosen_latents(generator, self.latents)
        return [Identity(*one) for one in chosen] + [Identity(name, None) for name in named or []]

    def ws_of(self, generator: Generator, identities: Sequence[Identity]) -> Tensor:
        """Latents (N, num_ws, w_dim), truncated and edited as asked."""
        if self._moved is None:  # once for all: directions take a moment to find
            nowhere = torch.zeros(1, generator.num_ws, generator.w_dim, device=self.device)
            self._moved = edit_latents(generator, nowhere, self.edits)
        ws = identity_latents(generator, identities, self.trunc, self.trunc_cutoff)
        return ws + self._moved if self.edits else ws


@dataclass(frozen=True)
class Identity:
    """A seed, or named latents of the file."""

    name: str
    seed: int | None


def chosen_latents(generator: Generator, names: Sequence[str]) -> list[str]:
    """Names of latents, `all` being all that the file holds.

    Raises:
        UserError: for names that it does not hold.
    """
    held = list(generator.latents)
    wanted = held if list(names) == ["all"] else list(names)
    missing = [name for name in wanted if name not in held]
    if missing or not wanted:
        there = f"it holds {', '.join(held)}" if held else "invert.py writes such files"
        what = f"no latents {missing[0]!r}" if missing else "no named latents"
        raise UserError(f"--latents: the network's file holds {what}; {there}")
    return wanted


@torch.no_grad()
def identity_latents(
    generator: Generator,
    identities: Sequence[Identity],
    truncation_psi: float,
    truncation_cutoff: int | None,
) -> Tensor:
    """Latents (N, num_ws, w_dim); those of seeds are conditioned on the frontal pose."""
    device = next(generator.parameters()).device
    parts = []
    for one in identities:
        if one.seed is None:
            ws = generator.latents[one.name]["ws"][None].to(device)
        else:
            ws = map_latents(generator, seed_latents(generator, one.seed))
        parts.append(generator.backbone.mapping.truncate(ws, truncation_psi, truncation_cutoff))
    return torch.cat(parts)


def seeds_option(default: str) -> Callable[[F], F]:
    """--seeds, whose default holds where no latents are named."""

    def fill(ctx: click.Context, param: click.Parameter, seeds: list[int] | None) -> Any:
        is_empty = seeds is None and ctx.params.get("latents") is None
        return Seeds().convert(default, param, ctx) if is_empty else seeds

    help_text = f"Which latents: 0-10 or 1,5,7-9.  [default: {default}, unless --latents]"
    return click.option("--seeds", type=Seeds(), callback=fill, help=help_text)


latents_option = click.option(
    "--latents",
    type=Commas("names", str, "names"),
    is_eager=True,
    metavar="NAME,...|all",
    help="Identities that the file holds, as invert.py writes them.",
)
edit_option = click.option(
    "--edit",
    "edits",
    type=Edits(),
    multiple=True,
    callback=lambda _, __, edits: Edits.joined(edits),
    metavar="NAME=STEPS",
    help="Move along a direction of the file, or sefa1 to sefa10: hair=+2. Repeatable.",
)


def sampling_options(seeds: str) -> Callable[[F], F]:
    """Add the options of `SamplingRequest` to a command; `seeds` is the default of --seeds."""
    options = (
        network_option,
        seeds_option(seeds),
        latents_option,
        edit_option,
        outdir_option,
        trunc_option,
        trunc_cutoff_option,
        nrr_option,
        sampling_precision_option,
        device_option,
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def transparency_options(command: F) -> F:
    """--transparent and --remove-background."""
    for option in (
        click.option(
            "--remove-background",
            is_flag=True,
            help="With --transparent: also what the model paints behind the object.",
        ),
        click.option("--transparent", is_flag=True, help="The object alone, with alpha."),
    ):
        command = option(command)
    return command


def check_transparency(
    transparent: bool, remove_background: bool, option: str, shown: Sequence[str]
) -> None:
    """Refuse combinations that leave no alpha: depth and normals have none.

    Args:
        option: That names what is `shown`.
    """
    if remove_background and not transparent:
        raise click.UsageError("--remove-background is for pictures with alpha; add --transparent")
    if transparent and list(shown) != ["image"]:
        raise click.UsageError(f"--transparent shows the final picture; leave {option} out")
