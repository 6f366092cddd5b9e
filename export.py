"""Write the generator of a file in another form:

python export.py --network run/network-snapshot-000200.pkl --dest heads.pkl
python export.py --network heads.pkl --seeds 0-7 --dest avatars.html
python export.py --network heads.pkl --seeds 0-3 --dest out --format splat-ply
python export.py --network heads.pkl --dest site --format web
"""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from cli.program import program
from cli.rendering import network_option
from cli.sampling import (
    Identity,
    chosen_latents,
    edit_option,
    identity_latents,
    latents_option,
)
from cli.values import Finite, Seeds
from dnnlib.console import UserError, run_cli
from dnnlib.files import local_file, make_dir
from media.splats.files import SPLAT_FORMATS, save_splats
from open_eg3d import splats
from open_eg3d.exporting import FORMATS, SUFFIXES, Heads, checkpoint_of, write_as
from training.checkpoints.checkpoint import (
    build_generator,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.checkpoints.released.interop import Weights
from training.checkpoints.show import in_units
from training.checkpoints.weights_folder import FILES
from training.inversion.directions import edit_latents
from training.networks.generator import Generator

SHAPES = "gen_samples.py --network {network} --no-images --shapes {kind}"
COMMANDS = {  # that write what --dest asks for
    **dict.fromkeys(("glb", "ply", "obj", "stl", "mrc"), SHAPES),
    **dict.fromkeys(("mp4", "gif"), "gen_videos.py --network {network} --formats {kind}"),
    "png": "gen_samples.py --network {network}",
    "safetensors": "export.py --network {network} --dest {stem}",
}

KINDS = {**SUFFIXES, ".splat": "splat"}  # by ending; .ply and .glb name surfaces, too
ENDINGS = {*SUFFIXES, *SPLAT_FORMATS.values()} - {""}  # of files that this program writes


def run_checkpoint(source: Path, generator: Generator, dest: Path) -> list[Path]:
    """Write a checkpoint of ours again, without what only training needs. Settings and progress of
    the run stay, and the name of the data, not its folder.
    """
    run = load_checkpoint(source)
    data = replace(run.config.data, path=Path(run.config.data.path).name)
    content = replace(
        checkpoint_of(generator), config=replace(run.config, data=data), progress=run.progress
    )
    save_checkpoint(dest, content)
    return [dest]


def write_splats(
    kind: str, generator: Generator, source: Path, dest: Path, heads: Heads, overwrite: bool
) -> list[Path]:
    """Write a file of Gaussians for each head: --dest itself where that has the format's ending,
    else into the folder --dest.

    Raises:
        UserError: if --dest names a file of another kind, if several heads should be one file, or
            as `check_new`.
    """
    ending = SPLAT_FORMATS[kind]
    is_file = dest.suffix.lower() == ending
    if not dest.is_dir() and dest.suffix.lower() in ENDINGS - {ending}:
        raise UserError(f"{dest}: files of {kind} end in {ending}; name such a file, or a folder")
    if is_file and len(heads) > 1:
        raise UserError(
            f"{dest}: a file holds one head, and these are {len(heads)}; name a folder, or one of"
            " --seeds"
        )
    paths = [dest if is_file else dest / f"{name}{ending}" for name in heads]
    check_new(source, paths, overwrite)
    if not is_file:
        make_dir(dest)
    for path, ws in zip(paths, heads.values(), strict=True):
        save_splats(path, splats(generator, ws), kind)
    return paths


def chosen_heads(
    generator: Generator,
    seeds: list[int],
    latents: list[str],
    psi: float,
    edits: dict[str, float],
    seed_name: str,
) -> Heads:
    """Latents by name, that of a seed as `seed_name` has it."""
    heads = [Identity(seed_name.format(seed), seed) for seed in seeds]
    if latents:
        heads += [Identity(name, None) for name in chosen_latents(generator, latents)]
    ws = edit_latents(generator, identity_latents(generator, heads, psi, None), edits)
    return {head.name: one for head, one in zip(heads, ws.split(1), strict=True)}


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
    return replace(weights, G=None, D=None)


def choose_format(dest: Path, named: str | None) -> str:
    """--format, else what the ending of --dest says; a folder is one of safetensors."""
    return named or KINDS.get("" if dest.is_dir() else dest.suffix.lower(), "checkpoint")


def check_name(network: str, dest: Path) -> None:
    """Raise a UserError that names the right command if --dest names a file of another kind."""
    kind = dest.suffix.lower()[1:]
    if kind in COMMANDS and not dest.is_dir():
        command = COMMANDS[kind].format(
            network=shlex.quote(network), kind=kind, stem=shlex.quote(str(dest.with_suffix("")))
        )
        what = "a folder of safetensors" if kind == "safetensors" else f"a {kind} file"
        raise UserError(f"{dest}: {what} is written by: python {command}")


def check_dest(
    source: Path, dest: Path, files: Callable[[Path], list[Path]], overwrite: bool
) -> None:
    """Raise a UserError unless --dest is a file or folder as the format has it, or as
    `check_new`.
    """
    targets = files(dest)
    if targets == [dest] and dest.is_dir():
        raise UserError(f"{dest} is a folder; name a file, or choose another --format")
    if targets != [dest] and dest.is_file():
        raise UserError(f"{dest} exists already and is a file; choose another --dest")
    check_new(source, targets, overwrite)


def check_new(source: Path, targets: list[Path], overwrite: bool) -> None:
    """Raise a UserError unless all files to write are new, or may be replaced and are not the
    source's.
    """
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


@program(Files="network dest named overwrite", Heads="seeds latents edits trunc")
@network_option
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
    type=click.Choice([*FORMATS, *SPLAT_FORMATS]),
    help=(
        "What to write.  [default: .onnx two ONNX graphs, .html a page of heads, no ending a folder"
        " of safetensors, else a checkpoint]"
    ),
)
@click.option("--seeds", type=Seeds(), help="Of a page or splats: 0-10 or 1,5,7-9.  [default: 0-7]")
@click.option(
    "--trunc",
    type=Finite(),
    help="Of a page or splats: truncation psi, 1 none, 0 the average.  [default: 1]",
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

    Or write a page of heads that a browser renders by itself, without a server. Or, with --format
    splat-ply, splat or splat-glb, heads as 3D Gaussians for splat viewers, a file each; with
    --format web, a folder for a file server, whose page makes new heads.
    """
    chosen = choose_format(dest, named)
    is_splats = chosen in SPLAT_FORMATS
    of_heads = is_splats or chosen == "html"
    if not of_heads and (seeds is not None or trunc is not None or latents or edits):
        raise click.UsageError(
            "--seeds, --latents, --edit and --trunc choose the heads of a page or of splats; end"
            " --dest in .html, or leave them out"
        )
    source = local_file(network)
    if not is_splats:
        check_name(network, dest)
        check_dest(source, dest, FORMATS[chosen].files, overwrite)
    weights = load_averaged(source)
    generator = build_generator(weights)
    heads: Heads = {}
    if of_heads:
        shown = seeds or ([] if latents else list(range(8)))
        psi = 1.0 if trunc is None else trunc
        name = "seed{:04}" if is_splats else "seed {}"
        heads = chosen_heads(generator, shown, latents or [], psi, edits, name)
    if is_splats:
        files = write_splats(chosen, generator, source, dest, heads, overwrite)
    elif chosen == "checkpoint" and weights.source == "ours" and source.is_file():
        files = run_checkpoint(source, generator, dest)
    else:
        files = write_as(chosen, generator, dest, heads)
    for path in files:
        click.echo(f"Wrote {path}, {in_units(path.stat().st_size, 'B')}")


if __name__ == "__main__":
    run_cli(main)
