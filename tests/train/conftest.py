"""Runs that several tests look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shared import made_once
from tests.tiny import Ended, finish, kimg, only_run, start, write_dataset
from tests.train.runs import RUN_OPTIONS, train_here


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def write(folder: Path) -> None:
        write_dataset(folder / "blots.zip")

    return made_once(tmp_path_factory, "data", write) / "blots.zip"


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Run folder and output of six undisturbed steps in a process of their own."""

    def train(folder: Path) -> None:
        options: list[str | Path] = ["--data", data, "--outdir", folder / "runs"]
        process = start("train.py", *options, *RUN_OPTIONS, "--kimg", kimg(6))
        ended = finish(process).assert_done()
        (folder / "ended.json").write_text(json.dumps([ended.status, ended.out, ended.err]))

    folder = made_once(tmp_path_factory, "whole", train)
    ended = Ended(*json.loads((folder / "ended.json").read_text()))
    return only_run(folder / "runs"), ended


@pytest.fixture(scope="session")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the first three of these steps; not to be changed."""

    def train(folder: Path) -> None:
        options: list[str | Path] = ["--data", data, "--outdir", folder]
        train_here(*options, *RUN_OPTIONS, "--kimg", kimg(3)).assert_done()

    return only_run(made_once(tmp_path_factory, "half", train))


@pytest.fixture
def half_copy(half: Path, tmp_path: Path) -> Path:
    """A copy of that folder in an outdir of its own."""
    target = tmp_path / "runs" / half.name
    target.mkdir(parents=True)
    for path in half.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
