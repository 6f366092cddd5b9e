"""Write the generator of a file in another form:

python export.py --network run/network-snapshot-000200.pkl --dest heads.pkl
python export.py --network heads.pkl --seeds 0-7 --dest avatars.html
"""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import copy
import dataclasses
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from cli.sampling import (
    Identity,
    chosen_latents,
    edit_option,
    identity_latents,
    latents_option,
)
from cli.values import Finite, Seeds
from dnnlib.console import UserError, progress, run_cli
from dnnlib.files import local_file
from media.avatar import write_avatars
from open_eg3d import load_generator
from training.checkpoints.checkpoint import (
    Checkpoint,
    build_generator,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.checkpoints.onnx_graphs import write_image_graph, write_planes_graph
from training.checkpoints.released.interop import Weights
from training.checkpoints.show import in_units
from training.checkpoints.weights_folder import FILES, write_weights_folder
from training.config.settings import Config
from training.inversion.directions import edit_latents


@dataclass(frozen=True)
class Job:
    """Options of an export. A page shows the heads of some seeds."""

    source: Path
    weights: Weights
    dest: Path
    seeds: list[int]
    latents: list[str]
    truncation_psi: float
    edits: dict[str, float]


# --------------------------------------------------------------------------------------------------
# Writers: each takes a job and returns the files it has written


def write_checkpoint(job: Job) -> list[Path]:
    """Our checkpoint without what only training needs."""
    save_checkpoint(job.dest, inference_checkpoint(job))
    return [job.dest]


def write_safetensors(job: Job) -> list[Path]:
    """A folder of safetensors and config.json."""
    write_weights_folder(job.dest, job.weights)
    return [path for path in targets_safetensors(job.dest) if path.exists()]


def write_onnx(job: Job) -> list[Path]:
    """Two graphs: latent to planes, planes to pictures."""
    generator = build_generator(job.weights)
    targets = targets_onnx(job.dest)
    writers = (write_planes_graph, write_image_graph)
    with progress(zip(targets, writers, strict=True), "ONNX graphs", total=2, unit="graph") as bar:
        for path, write in bar:
            bar.set_postfix_str(path.name)
            write(path, generator)
    return targets


def write_page(job: Job) -> list[Path]:
    """A page of heads that a browser renders."""
    generator = load_generator(job.source, reuse_memory=True)
    heads = [Identity(f"seed {seed}", seed) for seed in job.seeds]
    if job.latents:
        heads += [Identity(name, None) for name in chosen_latents(generator, job.latents)]
    ws = edit_latents(
        generator, identity_latents(generator, heads, job.truncation_psi, None), job.edits
    )
    named = {head.name: one for head, one in zip(heads, ws.split(1), strict=True)}
    title = f"Generated heads: {job.dest.stem}"
    write_avatars(job.dest, generator, named, title)
    return [job.dest]


def targets_safetensors(dest: Path) -> list[Path]:
    """Files that `write_safetensors` may write."""
    return [dest / name for name in FILES]


def targets_onnx(dest: Path) -> list[Path]:
    """NAME.onnx stands for two files beside each other, another name for a folder."""
    stem = f"{dest.stem}." if dest.suffix == ".onnx" else ""
    folder = dest.parent if stem else dest
    return [folder / f"{stem}planes.onnx", folder / f"{stem}image.onnx"]


@dataclass(frozen=True)
class Format:
    """A kind of file: its writer, and the files that a --dest stands for."""

    write: Callable[[Job], list[Path]]
    targets: Callable[[Path], list[Path]]


FORMATS = {
    "checkpoint": Format(write_checkpoint, lambda dest: [dest]),
    "safetensors": Format(write_safetensors, targets_safetensors),
    "onnx": Format(write_onnx, targets_onnx),
    "html": Format(write_page, lambda dest: [dest]),
}
SUFFIXES = {"": "safetensors", ".onnx": "onnx", ".html": "html"}  # any other is a checkpoint
SHAPES = "gen_samples.py --network {network} --no-images --shapes {kind}"
COMMANDS = {  # that write what --dest asks for
    **dict.fromkeys(("glb", "ply", "obj", "mrc"), SHAPES),
    **dict.fromkeys(("mp4", "gif"), "gen_videos.py --network {network} --formats {kind}"),
    "png": "gen_samples.py --network {network}",
    "safetensors": "export.py --network {network} --dest {stem}",
}


# --------------------------------------------------------------------------------------------------
# What they write


def inference_checkpoint(job: Job) -> Checkpoint:
    """What making pictures needs: averaged weights, settings, cameras, progress. The name of the
    data stays, its folder does not.
    """
    weights = job.weights
    if weights.source == "ours" and job.source.is_file():
        run = load_checkpoint(job.source)
        config, progress = copy.deepcopy(run.config), run.progress
        config.data.path = Path(config.data.path).name
    else:
        config, progress = Config(model=weights.config), {}
    return Checkpoint(
        config,
        progress=progress,
        G_ema=weights.G_ema,
        cameras=weights.cameras,
        latents=weights.latents,
        directions=weights.directions,
    )


def load_averaged(source: Path) -> Weights:
    """Weights of any file that this program reads, the averaged generator alone.

    Raises:
        UserError: if there are no averaged weights.
    """
    weights = load_weights(source)
    if weights.G_ema is None:
        raise UserError(
            f"{source} has no averaged generator weights (G_ema); export a file that training has"
            " written"
        )
    return dataclasses.replace(weights, G=None, D=None)


def choose_format(dest: Path, named: str | None) -> str:
    """--format, else what the ending of --dest says; a folder is one of safetensors."""
    return named or SUFFIXES.get("" if dest.is_dir() else dest.suffix.lower(), "checkpoint")


def check_name(network: str, dest: Path) -> None:
    """Raise a UserError that names the right command if --dest names a file of another kind."""
    kind = dest.suffix.lower()[1:]
    if kind in COMMANDS and not dest.is_dir():
        command = COMMANDS[kind].format(
            network=shlex.quote(network), kind=kind, stem=shlex.quote(str(dest.with_suffix("")))
        )
        what = "a folder of safetensors" if kind == "safetensors" else f"a {kind} file"
        raise UserError(f"{dest}: {what} is written by: python {command}")


def check_dest(source: Path, dest: Path, kind: Format, overwrite: bool) -> None:
    """Raise a UserError unless all files to write are new, or may be replaced and are not the
    source's.
    """
    targets = kind.targets(dest)
    if targets == [dest] and dest.is_dir():
        raise UserError(f"{dest} is a folder; name a file, or choose another --format")
    if targets != [dest] and dest.is_file():
        raise UserError(f"{dest} exists already and is a file; choose another --dest")
    sources = [source / name for name in FILES] if source.is_dir() else [source]
    for target in targets:
        is_source = any(
            target.exists() and path.exists() and os.path.samefile(path, target) for path in sources
        )
        if target.exists() and (not overwrite or is_source):
            raise UserError(
                f"{target} exists already; choose another --dest, or --overwrite a file other than"
                " the source"
            )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--network",
    required=True,
    metavar="FILE|DIR|URL",
    help="Checkpoint, ours or released, or a folder written by this program.",
)
@click.option(
    "--dest",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="File or folder to write.",
)
@click.option(
    "--format",
    "named",
    type=click.Choice(list(FORMATS)),
    help=(
        "What to write.  [default: .onnx two ONNX graphs, .html a page of heads, no ending a folder"
        " of safetensors, else a checkpoint]"
    ),
)
@click.option(
    "--seeds", type=Seeds(), help="Of a page: which heads, 0-10 or 1,5,7-9.  [default: 0-7]"
)
@click.option(
    "--trunc", type=Finite(), help="Of a page: truncation psi, 1 none, 0 the average.  [default: 1]"
)
@latents_option
@edit_option
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def main(
    network: str,
    dest: Path,
    named: str | None,
    seeds: list[int] | None,
    trunc: float | None,
    latents: list[str] | None,
    edits: dict[str, float],
    overwrite: bool,
) -> None:
    """Write the generator alone: as a checkpoint a tenth of the size, as safetensors, or as ONNX
    graphs for other programs.

    Or write a page of heads that a browser renders by itself, without a server.
    """
    chosen = choose_format(dest, named)
    if chosen != "html" and (seeds is not None or trunc is not None or latents or edits):
        raise click.UsageError(
            "--seeds, --latents, --edit and --trunc choose the heads of a page; end --dest in"
            " .html, or leave them out"
        )
    check_name(network, dest)
    source = local_file(network)
    kind = FORMATS[chosen]
    check_dest(source, dest, kind, overwrite)
    shown = seeds or ([] if latents else list(range(8)))
    psi = 1.0 if trunc is None else trunc
    job = Job(source, load_averaged(source), dest, shown, latents or [], psi, edits)
    for path in kind.write(job):
        click.echo(f"Wrote {path}, {in_units(path.stat().st_size, 'B')}")


if __name__ == "__main__":
    run_cli(main)
