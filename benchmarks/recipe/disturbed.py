"""Data whose cameras are a little wrong, from data whose cameras are right."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data_tools.sinks import copy_with_labels
from training.cameras import CameraSummary, offset_labels, offsets_between
from training.config.settings import DataConfig
from training.data.dataset import ImageDataset
from training.data.traits import read_traits
from training.gan.pose_repair import prior_widths

SEED = 1


def write_disturbed(source: Path, dest: Path) -> None:
    """Copy a data set with cameras turned by 5 degrees around each axis, moved by 5 % of their
    distance, and the object by 3 % of the picture (standard deviations).
    """
    dataset = ImageDataset(source)
    cameras = CameraSummary.from_labels(dataset.labels)
    random = torch.randn(len(dataset), 6, generator=torch.Generator().manual_seed(SEED))
    turn, shift = (random * prior_widths(DataConfig(), cameras)).split(3, dim=1)
    labels = offset_labels(dataset.labels, cameras, turn, shift)
    copy_with_labels(dataset, dest, labels.double().numpy(), read_traits(dataset.files))


def error_degrees(labels: Tensor, true: Tensor) -> float:
    """Root mean square of the angle by which cameras (M, 25) are turned wrongly; not counting a
    turn that all share, which is one of the world.
    """
    turns = offsets_between(true, labels, CameraSummary.from_labels(true))[:, :3]
    return float((turns - turns.mean(0)).square().sum(1).mean().sqrt().rad2deg())
