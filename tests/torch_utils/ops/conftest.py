"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.operators import PATHS, on_path


@pytest.fixture(scope="module", params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on either path; without a compiler there is only one."""
    with on_path(request.param) as name:
        yield name


@pytest.fixture
def kernels() -> Iterator[None]:
    """Run a test on the compiled operators."""
    with on_path("cpp"):
        yield
