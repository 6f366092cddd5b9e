"""Tests do not feel what ran before them, nor in which process they run."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shared import made_once

Numbers = tuple[float, float, float]


def drawn() -> Numbers:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def first_of_seed_zero() -> Numbers:
    generator = torch.Generator().manual_seed(0)
    return (
        random.Random(0).random(),
        float(np.random.RandomState(0).rand()),
        float(torch.rand((), generator=generator)),
    )


@pytest.fixture(scope="module")
def of_the_module() -> Numbers:
    return drawn()


@pytest.mark.parametrize("turn", range(2))
def test_every_test_draws_the_same_numbers(
    turn: int,  # noqa: ARG001
    of_the_module: Numbers,
) -> None:
    assert of_the_module == drawn() == first_of_seed_zero()


def test_a_shared_folder_is_made_once(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").touch()

    worker = tmp_path / "worker"
    worker.mkdir()
    monkeypatch.setattr(tmp_path_factory, "getbasetemp", lambda: worker)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    first, second = (made_once(tmp_path_factory, "thing", make) for _ in range(2))
    assert first == second == made[0]
    assert len(made) == 1
    assert first.parent == tmp_path
    assert (first / "file").exists()
