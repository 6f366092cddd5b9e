"""Terminal output: one-line errors and progress bars."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import click
from tqdm import tqdm

from dnnlib.startup import raise_on_interrupt

T = TypeVar("T")

HELP = {"help_option_names": ["-h", "--help"], "show_default": True}  # of every command
LONGEST_LINE = 2000  # characters of an error message


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do."""


def brief(value: object, length: int = 60) -> str:
    """The beginning of a value from a file, for an error message: it may be of any size and
    depth.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = max(length, 20)
    return (value if isinstance(value, str) else short.repr(value))[:length]


def progress(
    items: Iterable[T],
    description: str,
    *,
    total: int | None = None,
    unit: str = "it",
    **options: Any,
) -> tqdm[T]:
    """Wrap `items` in a progress bar on stderr that shows speed and time left; options are
    tqdm's.
    """
    size = _bar_size()
    return tqdm(items, desc=description, total=total, unit=unit, mininterval=0.5, **size, **options)


def _bar_size() -> dict[str, Any]:
    """The terminal's size; a usual one where it says 0 x 0, as under `docker run -t`, where tqdm
    would show nothing.
    """
    try:
        is_told = all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):  # no terminal
        is_told = True
    return {"dynamic_ncols": True} if is_told else {"ncols": 79, "nrows": 24}


def counter(description: str, total: int, unit: str, **options: Any) -> tqdm[Any]:
    """A progress bar that its caller updates; options are tqdm's."""
    nothing: list[Any] = []
    return progress(nothing, description, total=total, unit=unit, **options)


def one_line(message: str) -> str:
    """Make one printable line of a message, so that text from a file can neither control nor flood
    the terminal.
    """
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def fail(message: str, status: int) -> NoReturn:
    """Print one line on stderr and exit with `status`."""
    sys.exit(tell(message, status))


def tell(message: str, status: int) -> int:
    """Print one line on stderr; returns `status`."""
    print("error: " + one_line(message), file=sys.stderr)
    return status


def run_cli(command: click.Command) -> NoReturn:
    """Run a click command so that every mistake of the user ends in one line and no traceback.

    Exit status: 0 success, 2 a wrong option, 1 a wrong file or any other `UserError`, 130 Ctrl-C.
    """
    raise_on_interrupt()
    sys.exit(status_of(lambda: command.main(standalone_mode=False)))


def status_of(action: Callable[[], Any]) -> int:
    """Call `action`, print its error in one line if it has one, and return the exit status."""
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
