"""Cameras that are made wrong on purpose, and how wrong they are said to be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.recipe.disturbed import error_degrees, write_disturbed
from tests.tiny import write_dataset
from training.cameras import CameraSummary, offset_labels
from training.data.dataset import ImageDataset


def test_cameras_are_as_wrong_as_is_said(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "in.zip", count=400)
    write_disturbed(source, tmp_path / "out.zip")
    before, after = ImageDataset(source), ImageDataset(tmp_path / "out.zip")
    assert error_degrees(before.labels, before.labels) == pytest.approx(0, abs=1e-3)
    expected = 5 * math.sqrt(3)  # around three axes
    assert error_degrees(after.labels, before.labels) == pytest.approx(expected, rel=0.1)
    assert torch.equal(after.read([7])[0], before.read([7])[0])


def test_a_turn_of_the_world_is_no_error(tmp_path: Path) -> None:
    labels = ImageDataset(write_dataset(tmp_path / "in.zip")).labels
    turn = torch.tensor([[0.0, 0.1, 0.0]]).expand(len(labels), 3)
    turned = offset_labels(labels, CameraSummary.from_labels(labels), turn, torch.zeros_like(turn))
    assert error_degrees(turned, labels) == pytest.approx(0, abs=1e-2)
