"""Precision of PyTorch's arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def use_full_fp32(tf32: bool = False) -> None:
    """Switch TF32 off: fp32 convolutions and products on CUDA then keep all their digits, as the
    published models were trained. With `tf32` they take their factors with 10 bits of the mantissa,
    which GPUs from Ampere on multiply several times faster.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Meanwhile fp32 keeps all its digits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    use_full_fp32()
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
