"""Options of the command lines that render."""

from __future__ import annotations

from pathlib import Path

import click

from cli.values import Finite

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
    help="Folder for the files.",
)
trunc_option = click.option(
    "--trunc",
    type=Finite(),
    default=1.0,
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
    help="Of the model's convolutions; bf16 where the processor has it.",
)
sampling_precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of the model's convolutions; auto: fp32 on CPUs, half precision on CUDA.",
)
