"""Planes in few bytes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from media.avatar.planes import pack, quantize, unpack

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@given(SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_unpacking_undoes_packing(codes: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(codes), codes.shape), codes)


@given(
    SHAPES.flatmap(
        lambda shape: arrays(np.float32, (3, *shape), elements=st.floats(-100, 100, width=32))
    )
)
def test_every_value_is_within_a_step_and_zero_stays(values: np.ndarray) -> None:
    planes = torch.from_numpy(values)[None]
    quantized = quantize(planes)
    channels = planes.shape[2]
    again = quantized.values()
    assert quantized.codes.shape[1] % 4 == 0
    assert not again[:, :, channels:].any()
    span = planes.amax((3, 4)).clamp(min=0) - planes.amin((3, 4)).clamp(max=0)
    error = (again[:, :, :channels] - planes).abs().amax((3, 4))
    assert (error <= span / 255 * 1.01 + 1e-30).all()
    assert (quantized.zero <= 255).all()


def test_smooth_planes_take_less_than_a_byte_a_value() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 6, 64), torch.linspace(0, 6, 64), indexing="ij")
    smooth = torch.stack([torch.sin(x + k) * torch.cos(y * (k + 1) / 8) for k in range(12)]).view(
        1, 3, 4, 64, 64
    )
    codes = quantize(smooth).codes
    assert len(pack(codes)) < 0.5 * codes.size
