"""Runs tests again and again beside busy programs, one for every core.

    python -m tests.under_load COUNT [pytest's arguments]

A test that waits for another process or for a page, and asks too early or gives up too soon, fails
in some of these runs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

BUSY = f"import os\nwhile os.getppid() == {os.getpid()}: pass"


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs that compute without end; they end with the block, or with this process."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def failing_runs(count: int, arguments: Sequence[str]) -> list[int]:
    """Numbers, from 1, of the runs of pytest in which a test failed."""
    command = [sys.executable, "-m", "pytest", *arguments]
    with busy_programs(os.cpu_count() or 1):
        return [
            number
            for number in range(1, count + 1)
            if subprocess.run(command, check=False).returncode != pytest.ExitCode.OK
        ]


if __name__ == "__main__":
    failed = failing_runs(int(sys.argv[1]), sys.argv[2:])
    sys.exit(f"error: tests failed in runs {failed} of {sys.argv[1]}" if failed else 0)
