"""What a person sees in the terminal: one-line errors and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import click
from tqdm import tqdm

T = TypeVar("T")


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do."""


def progress(items: Iterable[T], description: str, *, total: int | None = None, unit: str = "it") -> tqdm[T]:
    """Wrap `items` in a progress bar on stderr that shows speed and time left."""
    return tqdm(items, desc=description, total=total, unit=unit, dynamic_ncols=True, mininterval=0.5)


def fail(message: str, status: int) -> NoReturn:
    """Print one line on stderr and exit with `status`."""
    sys.exit(tell(message, status))


def tell(message: str, status: int) -> int:
    """Print one line on stderr; returns `status`."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return status


def run_cli(command: click.Command) -> NoReturn:
    """Run a click command so that every mistake of the user ends in one line and no traceback.

    Exit status: 0 success, 2 a wrong option, 1 a wrong file or any other `UserError`, 130 Ctrl-C.
    """
    sys.exit(status_of(lambda: command.main(standalone_mode=False)))


def status_of(action: Callable[[], Any]) -> int:
    """Do something and return the exit status of `run_cli` for it, having told of a mistake."""
    try:
        status = action()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        return tell(error.format_message(), error.exit_code)
    except UserError as error:
        return tell(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return tell("interrupted", 130)
    return status if isinstance(status, int) else 0
