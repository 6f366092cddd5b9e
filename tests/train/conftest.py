"""Runs that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import Ended, finish, kimg, only_run, start, write_dataset
from tests.train.runs import RUN_OPTIONS, train_here


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "blots.zip")


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Run folder and output of six undisturbed steps in a process of their own."""
    outdir = tmp_path_factory.mktemp("whole")
    ended = finish(
        start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", kimg(6))
    )
    ended.assert_done()
    return only_run(outdir), ended


@pytest.fixture(scope="session")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the first three of these steps; not to be changed."""
    outdir = tmp_path_factory.mktemp("half")
    train_here("--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", kimg(3)).assert_done()
    return only_run(outdir)


@pytest.fixture
def half_copy(half: Path, tmp_path: Path) -> Path:
    """A copy of that folder in an outdir of its own."""
    target = tmp_path / "runs" / half.name
    target.mkdir(parents=True)
    for path in half.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
