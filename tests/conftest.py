"""Settings of the whole test run."""

import contextlib
import random
import signal
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from torch_utils.ops import library

# Tiny tensors gain nothing from threads, and on a busy machine two threads that wait for each other
# are far slower than one.
torch.set_num_threads(1)

# A machine that is busy with something else is no reason for a test to fail.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A shell that starts this in the background asks to ignore Ctrl-C. Commands that tests start obey
# what they inherit, and tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Once for all tests and the commands that they start, before any of them looks for its caches
# elsewhere.
library.load()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that wait come first: they take longest, and at the end one process would
    be busy with the last of them while the others have nothing left to do.
    """
    waiting = {item.path for item in items if item.get_closest_marker("waits")}
    items.sort(key=lambda item: item.path not in waiting)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own is the same wherever it runs: alone, in another
    order, in another process.
    """
    _seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """So is what a fixture of several tests draws, and that disturbs none of them."""
    with contextlib.nullcontext() if fixturedef.scope == "function" else _own_random_numbers():
        return (yield)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
