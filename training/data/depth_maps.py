"""True depth maps of a data set, as `dataset_tool.py heads --depth` writes them: 16-bit PNGs named
depth/<name of the picture>.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.files import DataFiles, errors_named

DEPTH_UNIT = 1e-4  # world units per step, along the pixel's viewing ray; 0 = nothing there


def has_depth_map(files: DataFiles, picture: str) -> bool:
    """Whether a data set has a depth map for a picture."""
    return files.find(depth_name(picture)) is not None


def depth_name(picture: str) -> str:
    """Where a picture's depth map lies."""
    return f"depth/{picture}"


def read_depth_maps(files: DataFiles, pictures: Sequence[str]) -> Tensor:
    """Depths (N, 1, H, W), float64, of pictures by name.

    Raises:
        UserError: if one cannot be read.
    """
    maps = []
    for picture in pictures:
        name = files.find(depth_name(picture)) or depth_name(picture)
        content = io.BytesIO(files.read(name))
        with errors_named(files.where(name)), Image.open(content, formats=("PNG",)) as image:
            maps.append(np.asarray(image, dtype=np.float64) * DEPTH_UNIT)
    return torch.from_numpy(np.stack(maps))[:, None]
