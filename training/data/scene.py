"""Scene settings fitted to a data set (`--cfg auto`): the box around the object, the background.

Angles are radians, lengths world units, colours in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import (
    BOX_PER_VIEW,
    CameraSummary,
    Vector,
    fixed_choice,
    unpack_label,
    viewing_rays,
)
from training.config.settings import RenderingConfig
from training.data.dataset import ImageDataset

BORDER_PICTURES = 500
BACKGROUND_SHARE = 0.9  # of border pixels that must agree ...
BACKGROUND_TOLERANCE = 4  # ... to this many of 255 levels
# of the box side; portraits look at a point 0.28 of it before the middle of the head
OFF_CENTRE = 0.35


@dataclass(eq=False)
class SceneFit:
    """Scene settings that suit a data set, and one-line `notes` on what looks odd about its
    cameras.
    """

    cameras: CameraSummary
    box_warp: float
    background: Vector | None
    notes: list[str] = field(default_factory=list)


def fit_scene(labels: Tensor, images: Tensor) -> SceneFit:
    """Scene settings from camera labels (M, 25) and some of the pictures (N, 3, H, W), uint8.

    Raises:
        UserError: if the cameras do not look at a common point from outside.
    """
    cameras = CameraSummary.from_labels(labels)
    box_warp = BOX_PER_VIEW * cameras.radius / cameras.intrinsics[0]
    origins, directions = viewing_rays(unpack_label(labels.double())[0])
    to_pivot = torch.tensor(cameras.pivot, dtype=torch.float64) - origins
    along = (to_pivot * directions).sum(-1)
    if along.median() <= 1e-6 * origins.norm(dim=-1).median():
        raise UserError(
            "the cameras do not look at a common point in front of them; `dataset_tool.py check`"
            " says which usual mistake the labels look like, and --cfg ffhq, afhq or shapenet takes"
            " that model's scene instead of fitting one"
        )
    miss = float((to_pivot - along[:, None] * directions).norm(dim=-1).median())
    return SceneFit(cameras, box_warp, fit_background(images), _notes(cameras, box_warp, miss))


def fit_dataset_scene(dataset: ImageDataset) -> SceneFit:
    """`fit_scene` of a data set, with the border pixels of up to 500 pictures."""
    return fit_scene(
        dataset.labels, dataset.read(fixed_choice(len(dataset.file_names), BORDER_PICTURES))[0]
    )


def apply_scene(rendering: RenderingConfig, fit: SceneFit) -> None:
    """Write the fitted box and background into `rendering`, with near and far limits taken from the
    box.
    """
    rendering.box_warp = fit.box_warp
    rendering.ray_start = rendering.ray_end = "auto"
    rendering.background = fit.background


def fit_background(images: Tensor) -> Vector | None:
    """Colour on which at least 90 % of all border pixels of `images` (N, 3, H, W), uint8, agree
    within 4/255, or None.
    """
    ring = torch.ones(images.shape[-2:], dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    border = images[:, :, ring].permute(0, 2, 1).reshape(-1, 3).numpy()
    centre = np.array([_best_level(channel) for channel in border.T])
    agreeing = border[(np.abs(border.astype(int) - centre) <= BACKGROUND_TOLERANCE).all(1)]
    if len(agreeing) < BACKGROUND_SHARE * len(border):
        return None
    red, green, blue = np.median(agreeing, axis=0) / 255
    return float(red), float(green), float(blue)


def _best_level(values: np.ndarray) -> int:
    """Level with the most of `values` (P,), uint8, within the tolerance."""
    counts = np.bincount(values, minlength=256)
    return int(
        np.convolve(counts, np.ones(2 * BACKGROUND_TOLERANCE + 1, dtype=int), mode="same").argmax()
    )


def _notes(cameras: CameraSummary, box_warp: float, miss: float) -> list[str]:
    """What the box, centred at the world's origin, may not fit; `miss` is the optical axes' median
    distance to the pivot.
    """
    notes = []
    if np.linalg.norm(cameras.pivot) > OFF_CENTRE * box_warp:
        where = f"({', '.join(f'{value:.3g}' for value in cameras.pivot)})"
        notes.append(
            f"the cameras look at {where}, far off the middle of a box of side {box_warp:.3g};"
            " `dataset_tool.py convert --recentre` moves them, --set rendering.box_warp=SIZE makes"
            " the box larger"
        )
    if miss > box_warp / 4:
        notes.append(
            f"the cameras' axes miss their common point by {miss:.3g} (median) in a box of side"
            f" {box_warp:.3g}; are the poses right?"
        )
    return notes
