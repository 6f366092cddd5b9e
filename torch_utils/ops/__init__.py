"""Operators of style-based networks, each defined by a plain PyTorch reference.

from torch_utils.ops import bias_act, upfirdn2d, filtered_lrelu
"""

from torch_utils.ops import self_check as self_check  # registers its check of GPUs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "bias_act",
    "downsample2d",
    "filter2d",
    "filtered_lrelu",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
