"""Ctrl-C while a command line is still importing its libraries. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

STATUS = 130  # what shells expect of a program that Ctrl-C ended
MESSAGE = "error: interrupted\n"


def quit_on_interrupt(module_name: str) -> None:
    """Let Ctrl-C end this process in one line, status 130, until `raise_on_interrupt`.

    To be called by a command line with its `__name__` before the imports that take seconds: libraries written in C turn a
    KeyboardInterrupt that reaches them half imported into errors of their own. Where the module is merely imported, by a test
    or by a process that training has started, nothing happens; nor where the parent asked to ignore Ctrl-C.
    """
    if module_name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_on_interrupt() -> None:
    """Give Ctrl-C its usual meaning back, a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(_signal: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, MESSAGE.encode())
    os._exit(STATUS)
