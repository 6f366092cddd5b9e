"""Checks of what callers hand to the networks: one line in the words of the field, instead of an
error from the middle of a computation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError, brief
from training.cameras import LABEL_SIZE
from training.config.settings import RenderingConfig, from_dict

LABEL = "a camera label is a 4x4 camera-to-world matrix and 3x3 intrinsics, row by row"


def check_tensor(
    name: str, value: Any, *shape: int | str, dtype: torch.dtype | None = None, hint: str = ""
) -> None:
    """Check a tensor's shape, in which a letter stands for any size, and its type of numbers.

    Raises:
        UserError: that says what `name` must be and what it is.
    """
    wanted = f"({', '.join(map(str, shape))})"
    hint = f"; {hint}" if hint else ""
    if not isinstance(value, Tensor):
        convert = (
            f"torch.as_tensor({name}, dtype=torch.float32)" if hasattr(value, "__len__") else ""
        )
        raise UserError(
            f"{name} must be a tensor {wanted}, not {type(value).__name__}{hint}"
            + (f"; write {convert}" if convert else "")
        )
    fits = value.dim() == len(shape) and all(
        isinstance(size, str) or size == own for size, own in zip(shape, value.shape, strict=True)
    )
    if not fits:
        batch = f"; a single one is {name}[None]" if value.dim() == len(shape) - 1 else ""
        raise UserError(f"{name} must have shape {wanted}, not {tuple(value.shape)}{batch}{hint}")
    if dtype is not None and value.dtype != dtype:
        raise UserError(f"{name} is {value.dtype}, the network {dtype}; write {name}.to({dtype})")


def check_labels(c: Any, dtype: torch.dtype | None = None) -> None:
    """Raise a UserError unless `c` holds camera labels (N, 25)."""
    check_tensor("c", c, "N", LABEL_SIZE, dtype=dtype, hint=LABEL)


def check_views(planes: Any, ws: Any, c: Any, ws_shape: tuple[int, int]) -> None:
    """Raise a UserError unless planes (N, 3, C, H, W) and ws (N, num_ws, w_dim) can be seen from
    cameras c (K, 25): N is K or 1.
    """
    check_tensor("planes", planes, "N", 3, "C", "H", "W")
    check_tensor("ws", ws, "N", *ws_shape)
    check_labels(c)
    for name, value in (("planes", planes), ("ws", ws)):
        if len(value) not in (1, len(c)):
            raise UserError(
                f"{name} has {len(value)} samples and c {len(c)} cameras; give as many of both, or"
                " one sample"
            )


def check_rendering(rendering: RenderingConfig, known: RenderingConfig | None) -> RenderingConfig:
    """Check the settings of the scene, which may be changed at any time.

    Returns:
        A copy, for the next call's `known`: settings equal to it are not looked at again.

    Raises:
        UserError: naming the setting that has a value of the wrong kind.
    """
    if rendering == known or torch.compiler.is_compiling():
        return known or rendering
    checked: RenderingConfig = from_dict(RenderingConfig, vars(rendering), "rendering")
    if checked.background is not None and not all(0 <= part <= 1 for part in checked.background):
        raise UserError(
            f"rendering.background is {brief(checked.background)}; red, green and blue are numbers"
            " from 0 to 1"
        )
    return dataclasses.replace(rendering)
