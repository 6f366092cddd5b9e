"""Command line: make and check data sets."""

from __future__ import annotations

from typing import Any

import click

from dnnlib.console import run_cli


class Colour(click.ParamType):
    """R,G,B with numbers from 0 to 255."""

    name = "R,G,B"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the option's text."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
            self.fail(f"{value!r} is not three numbers from 0 to 255, like 77,153,158", param, ctx)
        return tuple(int(part) for part in parts)


def power_of_two(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Check an image size."""
    if value < 1 or value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two", ctx=ctx, param=param)
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make and check data sets of images with camera labels."""


@main.command()
@click.option("--dest", required=True, type=click.Path(), help="Archive (.zip) or folder to write.")
@click.option("--count", type=click.IntRange(min=1), default=6000, show_default=True, help="Number of images.")
@click.option(
    "--resolution", type=int, callback=power_of_two, default=64, show_default=True, help="Side of the images in pixels, a power of two."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same pictures.")
@click.option("--views-per-identity", type=click.IntRange(min=1), default=2, show_default=True, help="Images of each head.")
@click.option("--background", type=Colour(), default="77,153,158", show_default=True, help="Plain colour behind the heads.")
@click.option("--depth", is_flag=True, help="Also write depth maps (depth/) and masks (mask/).")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes; 0 takes one for each core.")
@click.option("--overwrite", is_flag=True, help="Replace an existing --dest.")
def heads(dest: str, overwrite: bool, **settings: Any) -> None:
    """Render random heads with exactly known cameras, the built-in data set."""
    from data_tools.heads import HeadsConfig, generate_heads

    path = generate_heads(dest, HeadsConfig(**settings), overwrite=overwrite)
    click.echo(f"wrote {settings['count']} images to {path}")


if __name__ == "__main__":
    run_cli(main)
