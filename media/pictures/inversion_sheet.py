"""One picture that shows an inversion: input, reconstruction, difference, five views, depth and
normals.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from media import PictureModel
from media.pictures.grids import Pictures, render_views, tile, to_pictures
from training.cameras import CameraSummary

VIEWS = 5


def inversion_sheet(
    generator: PictureModel,
    ws: Tensor,
    label: Tensor,
    picture: Tensor,
    cameras: CameraSummary,
    yaws: list[float],
    pitch: float,
) -> Pictures:
    """Panels side by side (R, (5 + views) R, 3).

    Args:
        ws: (1, num_ws, w_dim). label: Camera (25,) of the picture (3, R, R) in [-1, 1].
        yaws, pitch: Of the views, radians.
    """
    views = cameras.label(yaws, pitch).to(label)
    kinds = ("image", "depth", "normals")
    shown = render_views(generator, ws, torch.cat([label[None], views]), kinds=kinds)
    given = to_pictures(picture[None])
    difference = np.abs(given[0].astype(np.int16) - shown["image"][0]).astype(np.uint8)
    panels = [
        given,
        shown["image"][:1],
        difference[None],
        shown["image"][1:],
        shown["depth"][:1],
        shown["normals"][:1],
    ]
    row = np.concatenate(panels)
    return tile(row, 1, len(row))
