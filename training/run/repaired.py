"""The cameras of a data set as a run has put them right (`dataset_tool.py poses`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError, progress
from training.cameras import offsets_between
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset, to_float
from training.gan.pose_repair import PoseRepair

AT_ONCE = 256  # pictures


@dataclass(frozen=True, eq=False)
class Repaired:
    """A data set, better labels (M, 25) for its pictures, and by how much these turn and shift the
    cameras (M, 6), as `training.cameras.offset_labels` has it.
    """

    dataset: ImageDataset
    labels: Tensor
    moved: Tensor


def repaired_labels(snapshot: Path, source: str | None = None) -> Repaired:
    """Labels of the pictures that a run with `--poses repair` learns from, or of those in `source`,
    whose cameras must be wrong in the same ways.

    Raises:
        UserError: if the checkpoint or the data cannot be read, or the run has put nothing right.
    """
    kept = load_checkpoint(snapshot)
    if not kept.poses:
        raise UserError(f"{snapshot} has put no cameras right; train with --poses repair")
    dataset = ImageDataset(source or kept.config.data.path, background=PLAIN_BACKGROUND)
    repair = _repair_of(kept, dataset.labels, snapshot)
    parts = []
    for first in progress(range(0, len(dataset), AT_ONCE), "Cameras"):
        images, labels = dataset.read(np.arange(first, min(first + AT_ONCE, len(dataset))))
        parts.append(repair.better(to_float(images), labels))
    better = torch.cat(parts)
    return Repaired(dataset, better, offsets_between(dataset.labels, better, repair.summary))


def _repair_of(kept: Checkpoint, labels: Tensor, snapshot: Path) -> PoseRepair:
    repair = PoseRepair(kept.config, labels, torch.device("cpu"))
    try:
        repair.load_state_dict(kept.poses)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{snapshot}: section poses has the wrong form; it was not written by this program or"
            " is damaged"
        ) from error
    return repair
