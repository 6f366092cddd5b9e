"""The generator of a checkpoint, and nothing else: python export.py --network run/network-snapshot-000200.pkl --dest heads.pkl."""

from __future__ import annotations

from dnnlib.interrupts import quit_on_interrupt

quit_on_interrupt(__name__)  # the imports below take seconds

import copy
import os
from pathlib import Path

import click

from dnnlib.console import UserError, run_cli
from dnnlib.files import local_file
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def inference_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """What making pictures needs: averaged weights, settings, cameras, progress. The name of the data stays, its folder does not.

    Raises:
        UserError: if there are no averaged weights.
    """
    if checkpoint.G_ema is None:
        raise UserError("the checkpoint has no averaged generator weights (G_ema); export one that training has written")
    config = copy.deepcopy(checkpoint.config)
    config.data.path = Path(config.data.path).name
    return Checkpoint(config, progress=checkpoint.progress, G_ema=checkpoint.G_ema, cameras=checkpoint.cameras)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--network", required=True, metavar="FILE|URL", help="Checkpoint that training has written.")
@click.option("--dest", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def main(network: str, dest: Path, overwrite: bool) -> None:
    """Write the generator without what only training needs: a tenth of the size. Every program here reads the file."""
    source = local_file(network)
    if dest.exists() and (not overwrite or os.path.samefile(source, dest)):
        raise UserError(f"{dest} exists already; choose another --dest, or --overwrite a file other than the source")
    save_checkpoint(dest, inference_checkpoint(load_checkpoint(source)))
    click.echo(f"Wrote {dest}, {dest.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
