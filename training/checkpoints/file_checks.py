"""What a file of weights says, checked before anything is built from it: settings may say anything,
tensors may be of any kind.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.config.checks import check_ranges
from training.config.settings import Config, ModelConfig, config_sections

MAX_DEPTH = 20
MAX_VALUES = 1_000_000  # a checkpoint has about ten thousand
LARGEST_INTEGER = 1 << 64
LARGEST_SETTING = 1 << 20  # of whole numbers of a model
PLAIN_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def check_model(config: ModelConfig, where: str) -> None:
    """Raise a UserError that begins with `where` for a setting that no network has, such as a
    billion layers.
    """
    try:
        check_ranges(Config(model=config))
        _check_sizes(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_sizes(config: ModelConfig) -> None:
    for section_name, section in config_sections(Config(model=config)).items():
        for name, value in vars(section).items():
            values = value if isinstance(value, tuple) else (value,)
            if any(type(number) is int and number > LARGEST_SETTING for number in values):
                raise UserError(
                    f"{section_name}.{name} is above {LARGEST_SETTING}, more than any network has"
                )


def is_plain_tensor(tensor: Any) -> bool:
    """Whether a tensor is dense, in memory, of ordinary numbers, and has memory for each of them.

    A file can also describe sparse and shapeless tensors, and a thousand million numbers that all
    share one place.
    """
    if (
        type(tensor) is not Tensor
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.dtype not in PLAIN_DTYPES
    ):
        return False
    return (
        not tensor.is_quantized
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def is_plain_leaf(value: Any) -> bool:
    """Whether a value is a number of ordinary size, a text, None or an ordinary tensor."""
    is_number = type(value) in (float, bool) or (
        type(value) is int and abs(value) <= LARGEST_INTEGER
    )
    return value is None or is_number or type(value) is str or is_plain_tensor(value)


def is_plain(value: Any) -> bool:
    """Whether a value is built of what checkpoints hold: tensors, numbers, texts, None, lists and
    dicts, not endlessly many.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if type(item) in (dict, OrderedDict):
            if not all(type(key) in (str, int) for key in item):
                return False
            inside = list(item.values())
        elif type(item) in (list, tuple):
            inside = item
        elif is_plain_leaf(item):
            continue
        else:
            return False
        # Counted before they are entered: a few lists that hold one another a thousand times each
        # are quickly written.
        if depth >= MAX_DEPTH or seen + len(waiting) + len(inside) > MAX_VALUES:
            return False
        waiting += [(part, depth + 1) for part in inside]
    return True
