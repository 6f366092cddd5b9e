"""Serve a web page that shows heads: python viewer.py --network models/heads64.pkl."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import functools
import threading
from pathlib import Path

import click
import torch

from cli.devices import device_option
from cli.sampling import chosen_latents
from dnnlib.console import HELP, UserError, run_cli
from dnnlib.files import is_url, local_file
from media.viewer.checkpoints import CheckpointFolder
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32


@click.command(context_settings=HELP)
@click.option("--network", required=True, metavar="FILE|URL", help="Checkpoint, ours or released.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Checkpoints in it can be chosen in the page.  [default: the network's folder]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    help="Port to listen on; 0 any free one.",
)
@click.option("--latents", metavar="NAME", help="Identity of the file that is shown first.")
@device_option
def main(
    network: str,
    folder: Path | None,
    host: str,
    port: int,
    latents: str | None,
    device: torch.device,
) -> None:
    """Serve a page on which heads can be turned, mixed, compared and saved, until Ctrl-C. Only this
    machine is let in by default.
    """
    try:
        from media.viewer.server import run_viewer
    except ModuleNotFoundError as error:
        raise UserError(
            f"the viewer needs the package {error.name}; install it with: pip install -e"
            " '.[viewer]'"
        ) from error
    use_full_fp32()
    path = local_file(network)

    open_file = functools.partial(open_generator, device=device, precision="auto")
    checkpoints = CheckpointFolder(folder or (None if is_url(network) else path.parent), open_file)
    generator = open_file(path)
    name = checkpoints.name_of(path) or path.name
    identity = chosen_latents(generator, [latents])[0] if latents is not None else None
    with run_viewer(generator, name, checkpoints, host, port, identity) as viewer:
        click.echo(f"Look at {viewer.address} with a browser; Ctrl-C ends it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("Ended.")


if __name__ == "__main__":
    run_cli(main)
