"""Start-up of command lines, before they import libraries that take seconds; this module imports
nothing slow itself.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

STATUS = 130  # what shells expect of a program that Ctrl-C ended
MESSAGE = "error: interrupted\n"
OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Turns of a waiting thread before it sleeps; GNU's OpenMP, which PyTorch brings, takes 300,000.
# With one other busy program on two cores a training step takes four times as long with those as
# with these, and 3 % less on an idle machine.
SPINS = "3000"


def prepare_program(module_name: str) -> None:
    """Prepare a command line; to be called with its `__name__` before its other imports.

    Ctrl-C ends this process in one line, status 130, until `raise_on_interrupt`: libraries written
    in C turn a KeyboardInterrupt that reaches them half imported into errors of their own. Threads
    that wait for each other do not keep a processor busy for long.

    Where the module is merely imported, by a test or by a process that training has started,
    nothing happens. A parent that asked to ignore Ctrl-C is obeyed, and so are settings of OpenMP
    in the environment.
    """
    if module_name != "__main__":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
    if not any(name in os.environ for name in OPENMP_WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def raise_on_interrupt() -> None:
    """Give Ctrl-C its usual meaning back, a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(_signal: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, MESSAGE.encode())
    os._exit(STATUS)
