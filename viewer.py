"""Serve a web page that shows heads: python viewer.py --network models/heads64.pkl."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import functools
import threading
from pathlib import Path
from typing import Any

import click
import torch

from cli.devices import device_option
from cli.photos import PhotoOptions, settings_for, subjects_of
from cli.program import program
from cli.rendering import network_option
from cli.sampling import chosen_latents
from data_tools.faces.estimators import MEDIAPIPE, estimators_closed
from dnnlib.console import UserError, run_cli
from dnnlib.files import is_url, local_file
from media.viewer.checkpoints import CheckpointFolder
from open_eg3d import invert
from open_eg3d.opening import in_fp32, open_generator
from torch_utils.precision import use_full_fp32
from training.cameras import cameras_of
from training.inversion.inversion import InversionSettings
from training.inversion.latents import OnStep
from training.networks.generator import Generator

PHOTO_SECONDS = 60.0  # for a photo that a visitor uploads


def invert_photo(
    generator: Generator, data: bytes, is_cut_out: bool, on_step: OnStep
) -> tuple[Generator, dict[str, Any]]:
    """The person in an uploaded photo: what shows them, and an entry of its latents.

    Raises:
        UserError: if the photo cannot be used.
    """
    generator = in_fp32(generator)
    options = PhotoOptions({}, is_cut_out, MEDIAPIPE, face=1)
    cameras, resolution = cameras_of(generator), generator.config.resolution
    (one,) = subjects_of("photo", "photo", data, "the photo", options, cameras, resolution)
    found = invert(
        generator,
        one.picture,
        one.label,
        optimise_pose=one.origin == "guessed",
        seconds=PHOTO_SECONDS,
        settings=settings_for(InversionSettings(), [one.origin]),
        on_step=on_step,
    )
    return found.generator, found.entry("photo")


@program(Heads="network folder latents photos", Server="host port device")
@network_option
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
@click.option(
    "--photos/--no-photos",
    default=None,
    help="Make identities of photos that visitors upload.  [default: of this machine's alone]",
)
@device_option
def main(
    network: str,
    folder: Path | None,
    host: str,
    port: int,
    latents: str | None,
    photos: bool | None,
    device: torch.device,
) -> None:
    """Serve a page on which heads can be turned, mixed, compared and saved, until Ctrl-C. Only this
    machine is let in by default.
    """
    try:
        from media.viewer.gateway import LOOPBACK
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
    takes_photos = host in LOOPBACK if photos is None else photos
    make = invert_photo if takes_photos else None
    with (
        estimators_closed(),
        run_viewer(generator, name, checkpoints, host, port, identity, make) as viewer,
    ):
        click.echo(f"Look at {viewer.address} with a browser; Ctrl-C ends it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("Ended.")


if __name__ == "__main__":
    run_cli(main)
