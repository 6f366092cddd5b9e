"""Generators as command lines want them: on a device, in a precision."""

from __future__ import annotations

import os

import torch

from open_eg3d import load_generator
from training.networks.generator import Generator


def open_generator(
    path_or_url: str | os.PathLike[str], device: torch.device, precision: str = "fp32"
) -> Generator:
    """Generator of a file or address on a device, whose convolutions compute in fp32 or bf16.

    Raises:
        UserError: if the file cannot be read or holds no generator.
    """
    generator = load_generator(path_or_url, reuse_memory=True).to(device)
    if precision == "bf16":
        generator.set_conv_dtype(backbone=torch.bfloat16, superresolution=torch.bfloat16)
    return generator
