"""`python -m open_eg3d`: the commands, each with the first line of its help."""

from __future__ import annotations

import ast
from pathlib import Path

import click

from dnnlib.console import HELP, run_cli
from open_eg3d import __version__, programs

ROOT = Path(__file__).resolve().parents[1]


def first_line(name: str) -> str:
    """What a command does, from its source, since to import it takes seconds."""
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    (main,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    return " ".join((ast.get_docstring(main) or "").split("\n\n")[0].split())


@click.command(context_settings=HELP)
@click.version_option(__version__, prog_name="open-eg3d")
def main() -> None:
    """List the commands."""
    formatter = click.HelpFormatter()
    with formatter.section(f"open-eg3d {__version__}, commands"):
        rows = [(f"eg3d-{name.replace('_', '-')}", first_line(name)) for name in programs.NAMES]
        formatter.write_dl(rows)
    click.echo(formatter.getvalue(), nl=False)
    click.echo("\nOn a clone: python NAME.py. Each explains itself after -h.")


if __name__ == "__main__":
    run_cli(main)
