"""What all command lines share: `-h`, `--version`, and a help in which options stand by purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from dnnlib.console import HELP
from open_eg3d import __version__

version_option = click.version_option(__version__, prog_name="open-eg3d")


class Program(click.Command):
    """A command whose help lists options under headings.

    Args:
        purposes: Names of options, with blanks between them, by heading; others come last.
    """

    def __init__(self, *args: Any, purposes: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.purposes = {heading: names.split() for heading, names in purposes.items()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, the headings bold where the terminal can."""
        left = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        for heading, names in (*self.purposes.items(), ("Other options", None)):
            chosen = [one for one in left if names is None or one[0].name in names]
            left = [one for one in left if one not in chosen]
            if rows := [record for _, record in chosen if record]:
                with formatter.section(click.style(heading, bold=True)):
                    formatter.write_dl(rows)


def program(**purposes: str) -> Callable[[Callable[..., Any]], Program]:
    """Make a function a command line; `purposes` are those of `Program`, _ for a blank."""
    headings = {name.replace("_", " "): options for name, options in purposes.items()}

    def decorate(function: Callable[..., Any]) -> Program:
        make = click.command(cls=Program, purposes=headings, context_settings=HELP)
        return make(version_option(function))

    return decorate
