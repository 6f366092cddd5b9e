"""The stable import for other programs: networks from a checkpoint of ours or a released
snapshot.
"""

from __future__ import annotations

import os

from torch_utils.memory import keep_freed_memory
from training.checkpoints.checkpoint import build_discriminator, build_generator, load_weights
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

__all__ = ["__version__", "load_discriminator", "load_generator"]
__version__ = "0.1.0"


def load_generator(path_or_url: str | os.PathLike[str], *, reuse_memory: bool = True) -> Generator:
    """Generator of a file or http(s) address: eval mode, on the CPU, parameters frozen but every
    method differentiable.

    Args:
        reuse_memory: Let this process keep the freed buffers of CPU tensors for later ones
            (`torch_utils.memory`): large pictures are a third faster, and up to 1 GB stays with the
            process. False leaves PyTorch's allocator alone.

    Raises:
        dnnlib.console.UserError: if the file cannot be read or holds no generator.
    """
    if reuse_memory:
        keep_freed_memory()
    return build_generator(load_weights(path_or_url))


def load_discriminator(
    path_or_url: str | os.PathLike[str], *, reuse_memory: bool = True
) -> Discriminator:
    """Discriminator of a file or http(s) address: eval mode, on the CPU, parameters frozen.

    Args:
        reuse_memory: As for `load_generator`.

    Raises:
        dnnlib.console.UserError: if the file cannot be read or holds no discriminator.
    """
    if reuse_memory:
        keep_freed_memory()
    return build_discriminator(load_weights(path_or_url))
