"""Who renders: the compiled operators, which serve the standard decoder only, or the composable
path, which serves any.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.decode_points import DecoderWeights, fits_gpu

COMPUTE_DTYPES = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)


def fused_weights(decoder: object, planes: Tensor, positions: Tensor) -> DecoderWeights | None:
    """The decoder's weights if the compiled operators are to render, None if the composable path
    is: the one place that decides.

    A decoder that has a method `two_layer_weights` and answers it with weights says that it is the
    standard one, unchanged. A decoder that is anything else is called.

    Args:
        planes: (N, 3, C, H, W).
        positions: Ray origins or points, (..., 3).
    """
    describe = getattr(decoder, "two_layer_weights", None)
    weights: DecoderWeights | None = None if describe is None else describe()
    if weights is None:
        return None
    dtype = positions.dtype
    has_planes_dtype = planes.dtype == dtype or (planes.dtype in HALVES and dtype == torch.float32)
    if (
        dtype not in COMPUTE_DTYPES
        or not has_planes_dtype
        or any(weight.dtype != dtype for weight in weights)
    ):
        return None
    if weights.w0.shape[1] != planes.shape[2]:
        return None  # the composable path says what is wrong
    if planes.is_cuda and not fits_gpu(weights):
        if not torch.compiler.is_compiling():
            _tell_unfit(weights.w0.shape, weights.w1.shape)
        return None
    serves = library.use_kernels(planes, positions, *weights) and not torch.is_autocast_enabled(
        planes.device.type
    )
    return weights if serves else None


@functools.cache
def _tell_unfit(first: torch.Size, second: torch.Size) -> None:
    """Say once that a decoder with layers of these shapes is too large for the kernels."""
    warnings.warn(
        f"plain PyTorch renders on CUDA, which is slower: a decoder of {first[1]} features,"
        f" {first[0]} hidden units and {second[0] - 1} colours does not fit into a GPU's shared"
        " memory",
        RuntimeWarning,
        stacklevel=3,
    )
