"""True depth maps of a data set, as `dataset_tool.py heads --depth` writes them: 16-bit PNGs named
depth/<name of the picture>.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnlib.console import UserError

DEPTH_UNIT = 1e-4  # world units a step, along the pixel's viewing ray; 0 = nothing there
READ_ERRORS = (OSError, KeyError, ValueError, SyntaxError, zipfile.BadZipFile)


def has_depth_map(data: Path, picture: str) -> bool:
    """Whether a data set, ZIP or folder, has a depth map for a picture."""
    if data.is_dir():
        return (data / depth_name(picture)).is_file()
    with zipfile.ZipFile(data) as archive:
        return depth_name(picture) in archive.NameToInfo


def depth_name(picture: str) -> str:
    """Where a picture's depth map lies."""
    return f"depth/{picture}"


def read_depth_maps(data: Path, pictures: Sequence[str]) -> Tensor:
    """Depths (N, 1, H, W), float64, of pictures by name.

    Raises:
        UserError: if one cannot be read.
    """
    maps = []
    name = str(data)
    try:
        with _reader(data) as read:
            for name in map(depth_name, pictures):
                with Image.open(io.BytesIO(read(name)), formats=("PNG",)) as image:
                    maps.append(np.asarray(image, dtype=np.float64) * DEPTH_UNIT)
    except READ_ERRORS as error:
        raise UserError(
            f"{data}: depth map {name} cannot be read: {error}; make the data again"
        ) from error
    return torch.from_numpy(np.stack(maps))[:, None]


@contextlib.contextmanager
def _reader(data: Path) -> Iterator[Callable[[str], bytes]]:
    """A function that reads a file of a data set by name."""
    if data.is_dir():
        yield lambda name: (data / name).read_bytes()
    else:
        with zipfile.ZipFile(data) as archive:
            yield archive.read
