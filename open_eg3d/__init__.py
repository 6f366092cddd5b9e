"""The stable import for other programs: networks from a checkpoint of ours or a released snapshot."""

from __future__ import annotations

import os

from training.checkpoint import build_discriminator, build_generator, load_weights
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

__all__ = ["__version__", "load_discriminator", "load_generator"]
__version__ = "0.1.0"


def load_generator(path_or_url: str | os.PathLike[str]) -> Generator:
    """Generator of a file or http(s) address: eval mode, on the CPU, parameters frozen but every method differentiable.

    Raises:
        dnnlib.console.UserError: if the file cannot be read or holds no generator.
    """
    return build_generator(load_weights(path_or_url))


def load_discriminator(path_or_url: str | os.PathLike[str]) -> Discriminator:
    """Discriminator of a file or http(s) address: eval mode, on the CPU, parameters frozen.

    Raises:
        dnnlib.console.UserError: if the file cannot be read or holds no discriminator.
    """
    return build_discriminator(load_weights(path_or_url))
