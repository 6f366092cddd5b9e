"""`make demo`: show the model that comes with the program, train the built-in heads for twenty
minutes and show the result.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import torch

from cli.values import FiniteRange
from dnnlib.console import UserError, run_cli
from media.meshes.shapes import extract_mesh, save_mesh
from media.pictures.grids import camera_grid, identity_grid, save_png, seed_latent
from open_eg3d import load_generator
from training.cameras import CameraSummary
from training.run.launch import newest_snapshot

SHIPPED = Path(__file__).parent / "models" / "heads64.pkl"
IDENTITIES, VIEWS = 6, 5
MESH_RESOLUTION = 160


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for all files.",
)
@click.option(
    "--minutes",
    type=FiniteRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Training time.",
)
def main(outdir: Path, minutes: float) -> None:
    """Show the shipped heads; train new ones and show them, too: grids of identities and coloured
    meshes. A second call trains on.
    """
    report("Shipped model", SHIPPED, show(SHIPPED, outdir, "shipped"))
    train(outdir, minutes)
    snapshot = newest_snapshot(outdir)
    report("Model", snapshot, show(snapshot, outdir, "heads"))


def report(title: str, network: Path, files: tuple[Path, Path]) -> None:
    """Print the paths of the files."""
    click.echo(
        f"{title}: {network}\nHeads, their rendering and depth as they turn: {files[0]}\nColoured"
        f" mesh of the first head: {files[1]}"
    )


def train(outdir: Path, minutes: float) -> None:
    """Run train.py in a process of its own.

    Raises:
        UserError: if it fails; it has said why.
    """
    command = [
        "train.py",
        "--cfg",
        "heads",
        "--outdir",
        str(outdir),
        "--minutes",
        str(minutes),
        "--resume",
        "latest",
    ]
    click.echo("python " + " ".join(command))
    status = subprocess.run([sys.executable, *command], cwd=Path(__file__).parent).returncode
    if status:
        raise UserError(f"training ended with exit status {status}; see above")


@torch.no_grad()
def show(snapshot: Path, outdir: Path, name: str) -> tuple[Path, Path]:
    """Write the picture of identities x yaws, NAME.png, and the mesh of the first identity,
    NAME.glb; returns both paths.
    """
    generator = load_generator(snapshot, reuse_memory=True)
    cameras = CameraSummary.from_dict(generator.cameras or {})
    z = torch.cat([seed_latent(seed, generator.z_dim) for seed in range(IDENTITIES)])
    conditioning = cameras.frontal_label().expand(IDENTITIES, -1)
    ws = generator.mapping(z, conditioning, truncation_psi=0.8)
    grid, mesh = outdir / f"{name}.png", outdir / f"{name}.glb"
    save_png(
        grid, identity_grid(generator, ws, cameras, cameras.default_yaws(VIEWS), cameras.pitch)
    )
    save_mesh(
        mesh,
        extract_mesh(generator, generator.planes(ws[:1]), camera_grid(cameras), MESH_RESOLUTION),
    )
    return grid, mesh


if __name__ == "__main__":
    run_cli(main)
