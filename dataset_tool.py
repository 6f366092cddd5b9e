"""Command line: make and check data sets."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import json
import re
from pathlib import Path
from typing import Any

import click

from cli.program import version_option
from cli.values import FiniteRange, Parsed
from dnnlib.console import HELP, UserError, run_cli
from dnnlib.numbers import counted, finite

SOURCE_FORMATS = ("auto", "labels", "transforms", "colmap", "srn", "csv")
UP_AXES = ("auto", "x", "y", "z", "-x", "-y", "-z", "nearest", "cameras")
POSITIVE = FiniteRange(0, min_open=True)
PLAIN = {"white": (255, 255, 255), "black": (0, 0, 0)}


class Colour(Parsed):
    """R,G,B with numbers from 0 to 255."""

    name = "R,G,B"

    def parse(self, text: str) -> tuple[int, ...]:
        """The three numbers."""
        parts = text.split(",")
        if len(parts) != 3 or not all(
            re.fullmatch(r"\s*\d{1,3}\s*", part) and int(part) <= 255 for part in parts
        ):
            raise ValueError(f"{text!r} is not three numbers from 0 to 255, like 77,153,158")
        return tuple(int(part) for part in parts)


class Background(Colour):
    """A name or R,G,B."""

    name = "none|keep|white|black|random|R,G,B"

    def parse(self, text: str) -> Any:
        """`none`, `keep`, `random` or three numbers."""
        return (
            text if text in ("none", "keep", "random") else PLAIN.get(text) or super().parse(text)
        )


class Point(Parsed):
    """X,Y,Z with finite numbers."""

    name = "X,Y,Z"

    def parse(self, text: str) -> tuple[float, ...]:
        """The three numbers."""
        try:
            x, y, z = (finite(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"{text!r} is not three numbers, like 0,0,0.2") from None
        return x, y, z


def power_of_two(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Check an image size."""
    if not 1 <= value <= 1024 or value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two up to 1024", ctx=ctx, param=param)
    return value


def trainable_size(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Check a size of training pictures, or none."""
    if value is not None and value not in (32, 64, 128, 256, 512, 1024):
        raise click.BadParameter(
            f"{value} is not one of 32, 64, 128, 256, 512, 1024", ctx=ctx, param=param
        )
    return value


source_option = click.option(
    "--source", required=True, help="Data set: a ZIP, its URL, or a folder."
)
dest_option = click.option(
    "--dest",
    required=True,
    type=click.Path(path_type=Path),
    help="Archive (.zip) or folder to write.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing --dest.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Processes; 0 takes one for each core.",
)
background_option = click.option(
    "--background",
    type=Background(),
    default="none",
    help="What shows through transparent parts; keep: they stay transparent, for train.py --alpha.",
)


heads_seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Of the heads: the same seed gives the same pictures.",
)
views_option = click.option(
    "--views-per-identity", type=click.IntRange(min=1), default=2, help="Images of each head."
)


@click.group(context_settings=HELP)
@version_option
def main() -> None:
    """Make and check data sets of images with camera labels."""


@main.command()
@click.option(
    "--source",
    required=True,
    help="Folder, ZIP or URL with pictures and cameras, or one transforms.json or CSV.",
)
@dest_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(SOURCE_FORMATS),
    default="auto",
    help="What the source is.",
)
@click.option(
    "--resolution",
    type=int,
    callback=trainable_size,
    help="Side of the pictures.  [default: what the first one fills]",
)
@click.option(
    "--crop/--no-crop",
    default=True,
    help="Cut out the middle square, or squeeze the whole picture into one.",
)
@background_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Of random backgrounds.",
)
@click.option(
    "--up",
    type=click.Choice(UP_AXES),
    default="auto",
    help="The source world's upward axis.",
)
@click.option(
    "--recentre/--no-recentre",
    default=None,
    help="Move the point all cameras look at.  [default: for COLMAP, transforms]",
)
@click.option(
    "--radius",
    type=POSITIVE,
    help="Median distance of the cameras after recentring; for a CSV, all cameras'.",
)
@click.option(
    "--pivot",
    type=Point(),
    help="Where the point goes on recentring; for a CSV, what the cameras look at.",
)
@click.option(
    "--focal",
    type=POSITIVE,
    help="For a CSV without that column: focal length in picture widths.",
)
@click.option(
    "--angles",
    type=click.Choice(["degrees", "radians"]),
    help="Unit of a CSV's angles.  [default: degrees]",
)
@click.option(
    "--camera-axes",
    type=click.Choice(["opencv", "opengl"]),
    help="The source's camera axes.  [default: its format's]",
)
@click.option(
    "--poses",
    type=click.Choice(["cam2world", "world2cam"]),
    help="What the source's matrices are.  [default: its format's]",
)
@click.option(
    "--intrinsics",
    type=click.Choice(["normalised", "pixels"]),
    help="Unit in dataset.json.  [default: normalised]",
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out pictures that cannot be converted, and list them."
)
@workers_option
@overwrite_option
def convert(source: str, dest: Path, overwrite: bool, **settings: Any) -> None:
    """Write pictures with cameras from another format as a data set."""
    from data_tools.convert import ConvertConfig
    from data_tools.convert import convert as run
    from data_tools.sources.base import ReadOptions
    from dnnlib.parallel import ended_politely

    own = {
        name: settings.pop(name)
        for name in ("focal", "angles", "camera_axes", "poses", "intrinsics")
    }
    settings["up"] = None if settings["up"] == "auto" else settings["up"]
    options = ReadOptions(**own, radius=settings["radius"], pivot=settings["pivot"])
    with ended_politely():
        summary = run(source, dest, ConvertConfig(read=options, **settings), overwrite=overwrite)
    for line in (*summary.notes, *(f"left out: {reason}" for reason in summary.skipped)):
        click.echo(line, err=True)
    click.echo(
        f"wrote {counted(summary.count, 'image')} of {summary.resolution} pixels to {dest} (from"
        f" {summary.kind})" + (f", left out {len(summary.skipped)}" if summary.skipped else "")
    )


@main.command()
@source_option
@dest_option
@workers_option
@overwrite_option
def mirror(source: str, dest: Path, workers: int, overwrite: bool) -> None:
    """Write a data set with all of its pictures and their mirror images."""
    from data_tools.mirror import mirror as run
    from dnnlib.parallel import ended_politely

    with ended_politely():
        done = run(source, dest, workers=workers, overwrite=overwrite)
    click.echo(f"wrote {counted(done.before, 'image')} and as many mirrored to {dest}")


@main.command()
@source_option
@dest_option
@click.option(
    "--bins",
    type=click.IntRange(min=1),
    default=9,
    help="Equal parts of the range of yaws.",
)
@click.option(
    "--factor",
    type=FiniteRange(min=1),
    default=4.0,
    help="Most copies of a picture.",
)
@overwrite_option
def rebalance(source: str, dest: Path, bins: int, factor: float, overwrite: bool) -> None:
    """Write a data set in which pictures of rare yaws are repeated."""
    from data_tools.mirror import rebalance as run
    from dnnlib.parallel import ended_politely

    with ended_politely():
        done = run(source, dest, bins=bins, factor=factor, overwrite=overwrite)
    repeated = done.after - done.before
    click.echo(f"wrote {counted(done.after, 'image')}, {repeated} of them repeated, to {dest}")


@main.command()
@source_option
@click.option("--strict", is_flag=True, help="Exit status 1 on warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="Folder for cameras.png and contact.png."
)
@click.option(
    "--cfg",
    type=click.Choice(["auto", "ffhq", "afhq", "shapenet", "heads"]),
    default="auto",
    help="Preset whose scene the cameras must suit.",
)
@workers_option
@click.pass_context
def check(
    ctx: click.Context,
    source: str,
    strict: bool,
    as_json: bool,
    pictures: Path | None,
    cfg: str,
    workers: int,
) -> None:
    """Say all that is wrong or odd about a data set and how to mend it; exit status 1 on errors."""
    from data_tools.check.check import check_data
    from data_tools.check.draw_cameras import draw_checked
    from dnnlib.parallel import ended_politely

    try:
        with ended_politely():
            report, data = check_data(source, preset=cfg, workers=workers)
    except UserError as error:
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "source": source,
                        "ok": False,
                        "errors": [{"code": "source", "message": str(error)}],
                        "warnings": [],
                    }
                )
            )
            ctx.exit(1)
        raise
    if pictures and data.labels:
        report.summary["drawn"] = ", ".join(str(path) for path in draw_checked(data, pictures))
    click.echo(report.to_json() if as_json else report.to_text())
    ctx.exit(0 if report.ok(strict) else 1)


def estimator_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check that an estimator can be loaded."""
    from data_tools.faces.estimators import load_estimator

    try:
        load_estimator(value)
    except UserError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from error
    return value


@main.command()
@click.option("--source", help="Folder, ZIP or URL with pictures of people, or one picture.")
@click.option("--dest", type=click.Path(path_type=Path), help="Archive (.zip) or folder to write.")
@click.option(
    "--setup",
    is_flag=True,
    help="Install mediapipe, which finds faces, into an environment of its own; once.",
)
@click.option(
    "--resolution",
    type=int,
    default=512,
    callback=trainable_size,
    help="Side of the portraits.",
)
@click.option(
    "--pick",
    type=click.Choice(["largest", "central"]),
    default="largest",
    help="Which of several faces.",
)
@click.option(
    "--keep-roll",
    is_flag=True,
    help="Leave tilted heads tilted, with tilted cameras, instead of turning them upright.",
)
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    default=0,
    help="Leave out portraits of fewer pixels a side.",
)
@background_option
@click.option(
    "--estimator",
    default="mediapipe",
    callback=estimator_name,
    help="What finds faces: mediapipe, or MODULE:FUNCTION.",
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out files that cannot be read, and list them."
)
@workers_option
@overwrite_option
def faces(
    source: str | None, dest: Path | None, setup: bool, overwrite: bool, **settings: Any
) -> None:
    """Cut faces out of pictures as FFHQ for EG3D does, and estimate their cameras."""
    from data_tools.faces.convert import FacesConfig, convert_faces
    from data_tools.faces.mediapipe_process import set_up
    from dnnlib.parallel import ended_politely

    if not setup and (source is None or dest is None):
        raise click.UsageError(f"Missing option '{'--source' if source is None else '--dest'}'.")
    if (source is None) != (dest is None):
        raise click.UsageError("--source and --dest go together.")
    if settings["background"] in ("random", "keep"):
        raise click.BadParameter(
            f"{settings['background']} is for convert; choose a colour", param_hint="--background"
        )
    settings["background"] = None if settings["background"] == "none" else settings["background"]
    with ended_politely():
        if setup:
            click.echo("installing mediapipe, which takes about a minute and 430 MB", err=True)
            click.echo(f"mediapipe is ready in {set_up()}")
        if source is None or dest is None:
            return
        summary = convert_faces(source, dest, FacesConfig(**settings), overwrite=overwrite)
    for line in (
        *summary.notes,
        *(f"left out: {reason}" for reason in (*summary.faceless, *summary.skipped)),
    ):
        click.echo(line, err=True)
    left_out = len(summary.faceless) + len(summary.skipped)
    click.echo(
        f"wrote {counted(summary.count, 'portrait')} of {settings['resolution']} pixels to {dest},"
        f" left out {left_out}"
    )


@main.command()
@dest_option
@click.option("--count", type=click.IntRange(min=1), default=6000, help="Number of images.")
@click.option(
    "--resolution",
    type=int,
    callback=power_of_two,
    default=64,
    help="Pixels a side, a power of two up to 1024.",
)
@heads_seed_option
@views_option
@click.option(
    "--background",
    type=Colour(),
    default="77,153,158",
    help="Plain colour behind the heads.",
)
@click.option("--depth", is_flag=True, help="Also write depth maps (depth/) and masks (mask/).")
@click.option("--alpha", is_flag=True, help="Transparent pictures in the place of the background.")
@workers_option
@overwrite_option
def heads(dest: Path, overwrite: bool, **settings: Any) -> None:
    """Render random heads with exactly known cameras, the built-in data set."""
    from data_tools.heads.dataset import HeadsConfig, generate_heads

    path = generate_heads(dest, HeadsConfig(**settings), overwrite=overwrite)
    click.echo(f"wrote {counted(settings['count'], 'image')} to {path}")


@main.command()
@source_option
@dest_option
@heads_seed_option
@views_option
@overwrite_option
def traits(source: str, dest: Path, overwrite: bool, seed: int, views_per_identity: int) -> None:
    """Copy a data set that `heads` made before it wrote traits, with its heads' true traits."""
    from data_tools.heads.add_traits import add_traits
    from dnnlib.parallel import ended_politely

    with ended_politely():
        count = add_traits(source, dest, seed, views_per_identity, overwrite=overwrite)
    click.echo(f"wrote {counted(count, 'image')} with traits to {dest}")


@main.command()
@click.option(
    "--from",
    "snapshot",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint of a run with --poses repair.",
)
@click.option("--source", help="Data set: a ZIP or a folder.  [default: what the run learns from]")
@dest_option
@overwrite_option
def poses(snapshot: Path, source: str | None, dest: Path, overwrite: bool) -> None:
    """Copy a data set, with the cameras that a run has put right."""
    import math

    from data_tools.sinks import check_dest, copy_with_labels
    from training.data.traits import read_traits
    from training.run.repaired import repaired_labels

    check_dest(dest, overwrite, Path(source) if source else None)
    done = repaired_labels(snapshot, source)
    check_dest(dest, overwrite, done.dataset.path)
    files, labels = done.dataset.files, done.labels.double().numpy()
    copy_with_labels(done.dataset, dest, labels, read_traits(files), overwrite=overwrite)
    turned = math.degrees(done.moved[:, :3].norm(dim=1).median())
    click.echo(
        f"wrote {counted(len(labels), 'image')} to {dest}; cameras were turned by {turned:.2f}"
        " degrees (median)"
    )


if __name__ == "__main__":
    run_cli(main)
