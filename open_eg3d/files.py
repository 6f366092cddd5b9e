"""Networks from files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from torch_utils.memory import keep_freed_memory
from training.checkpoints.checkpoint import build_discriminator, build_generator, load_weights
from training.checkpoints.released.interop import Weights
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "models" / "heads64.pkl"
Network = TypeVar("Network", bound=nn.Module)


def load_generator(path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False) -> Generator:
    """Generator of a file or http(s) address: eval mode, on the CPU, parameters frozen but every
    method differentiable.

    Args:
        path_or_url: Checkpoint of this program, released snapshot, or folder of safetensors.
        reuse_memory: Let this process keep the freed buffers of CPU tensors for later ones
            (`torch_utils.memory`): large pictures are a third faster, and up to 1 GB stays with the
            process. False leaves PyTorch's allocator alone.

    Raises:
        UserError: if the file cannot be read or holds no generator.
    """
    return _load(build_generator, path_or_url, reuse_memory)


def load_discriminator(
    path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False
) -> Discriminator:
    """Discriminator of a file or http(s) address: eval mode, on the CPU, parameters frozen.

    Args:
        path_or_url, reuse_memory: As for `load_generator`.

    Raises:
        UserError: if the file cannot be read or holds no discriminator.
    """
    return _load(build_discriminator, path_or_url, reuse_memory)


def _load(
    build: Callable[[Weights], Network], path_or_url: str | os.PathLike[str], reuse_memory: bool
) -> Network:
    if reuse_memory:
        keep_freed_memory()
    return build(load_weights(path_or_url))
