"""Networks of shapes alone: what settings describe, before any memory is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from dnnlib.console import UserError
from training.config.settings import ModelConfig
from training.networks.discriminator import make_discriminator
from training.networks.generator import Generator

Network = TypeVar("Network", bound=nn.Module)


def shapes_of(kind: Callable[[ModelConfig], Network], config: ModelConfig, where: str) -> Network:
    """The network that settings describe, on the device `meta`.

    Raises:
        UserError: beginning with `where`, if they describe none.
    """
    try:
        with torch.device("meta"):
            return kind(config)
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{where} do not describe a network: {' '.join(str(error).split())[:200]}"
        ) from error


def check_networks(config: ModelConfig) -> None:
    """Raise a UserError if the settings describe no networks."""
    for kind in (Generator, make_discriminator):
        shapes_of(kind, config, "the model's settings")
