"""Which path of the operators a test runs on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pytest

from torch_utils.ops import builder, library

PATHS = ("reference", "cpp")

# For tests of what only the compiled operator promises, in modules whose tests all use `path`.
compiled_only = pytest.mark.parametrize("path", ["cpp"], indirect=True)


@contextlib.contextmanager
def on_path(name: str) -> Iterator[str]:
    """Run on the path of that name. Compiled operators are left out only where there is nothing to
    compile them with.
    """
    missing = missing_toolchain() if name == "cpp" else None
    if missing:
        pytest.skip(missing)
    with library.path(name):
        yield name


@functools.cache
def missing_toolchain() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        builder.find_toolchain()
    except builder.BuildError as error:
        return str(error)
    return None
