"""What the command lines that render have in common: options, and the generator that they name."""

from __future__ import annotations

import os
from pathlib import Path

import click
import torch

from dnnlib.options import Finite
from open_eg3d import load_generator
from training.networks.generator import Generator

network_option = click.option(
    "--network",
    required=True,
    metavar="FILE|DIR|URL",
    help="Checkpoint, ours or released, or a folder of weights.",
)
outdir_option = click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default="out",
    show_default=True,
    help="Folder for the files.",
)
trunc_option = click.option(
    "--trunc",
    type=Finite(),
    default=1.0,
    show_default=True,
    help="Truncation psi: 1 none, 0 the average.",
)
trunc_cutoff_option = click.option(
    "--trunc-cutoff",
    type=click.IntRange(0),
    help="Truncate only so many layers, from the coarsest.  [default: all]",
)
nrr_option = click.option(
    "--nrr",
    type=click.IntRange(1, 4096),
    help="Neural rendering resolution.  [default: the model's]",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the model's convolutions; bf16 where the processor has it.",
)


def open_generator(
    path_or_url: str | os.PathLike[str], device: torch.device, precision: str = "fp32"
) -> Generator:
    """Generator of a file or address on a device, whose convolutions compute in fp32 or bf16.

    Raises:
        UserError: if the file cannot be read or holds no generator.
    """
    generator = load_generator(path_or_url, reuse_memory=True).to(device)
    if precision == "bf16":
        generator.set_conv_dtype(backbone=torch.bfloat16, superresolution=torch.bfloat16)
    return generator
