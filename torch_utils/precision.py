"""Precision of PyTorch's arithmetic."""

from __future__ import annotations

import torch


def use_full_fp32() -> None:
    """Switch TF32 off: fp32 convolutions and products on CUDA then keep all their digits, as the
    published models were trained.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
