"""What callers hand to the networks: a mistake is one line in the field's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnlib.console import UserError
from tests.tiny import orbit_labels, tiny_config
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

C = orbit_labels(2)


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny_config().model).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ws(G: Generator) -> Tensor:
    return G.mapping(torch.randn(2, G.z_dim), C)


WRONG: dict[str, tuple[Callable[[Generator, Tensor], Any], str]] = {
    "z of another size": (
        lambda G, _: G.mapping(torch.randn(2, 9), C),
        r"z must have shape \(N, 8\), not \(2, 9\)",
    ),
    "z without a batch": (
        lambda G, _: G(torch.randn(8), C),
        r"z must have shape \(N, 8\), not \(8,\); a single one is z\[None\]",
    ),
    "z of numpy": (
        lambda G, _: G.mapping(cast(Any, np.zeros((2, 8))), C),
        r"z must be a tensor \(N, 8\), not ndarray; write torch.as_tensor",
    ),
    "z of doubles": (
        lambda G, _: G.mapping(torch.randn(2, 8).double(), C),
        r"z is torch.float64, the network torch.float32; write z.to\(torch.float32\)",
    ),
    "c of 16 numbers": (
        lambda G, _: G.mapping(torch.randn(2, 8), C[:, :16]),
        r"c must have shape \(N, 25\), not \(2, 16\); a camera label is",
    ),
    "c without a batch": (
        lambda G, ws: G.synthesis(ws, C[0]),
        r"c must have shape \(N, 25\), not \(25,\); a single one is c\[None\]",
    ),
    "c for None": (
        lambda G, ws: G.synthesis(ws, cast(Any, None)),
        r"c must be a tensor \(N, 25\), not None",
    ),
    "another count of cameras": (
        lambda G, ws: G.synthesis(ws, orbit_labels(3)),
        r"planes has 2 samples and c 3 cameras",
    ),
    "ws for z": (lambda G, _: G.planes(torch.randn(2, 8)), r"ws must have shape \(N, \d+, 8\)"),
    "points without a batch": (
        lambda G, ws: G.query(torch.zeros(5, 3), G.planes(ws)),
        r"points must have shape \(N, M, 3\), not \(5, 3\); a single one is points\[None\]",
    ),
    "planes of the backbone": (
        lambda G, ws: G.query_density(torch.zeros(2, 5, 3), G.planes(ws).flatten(1, 2)),
        r"planes must have shape \(N, 3, C, H, W\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_the_generator(name: str, G: Generator, ws: Tensor) -> None:
    call, message = WRONG[name]
    with pytest.raises(UserError, match=f"^{message}") as caught:
        call(G, ws)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("background", "white", "rendering.background: 'white' is not a list of 3 numbers or null"),
        ("background", (255, 255, 255), "rendering.background is .* numbers from 0 to 1"),
        ("depth_resolution", 4.5, "rendering.depth_resolution: 4.5 is not a whole number"),
        ("plane_axes", "mine", "rendering.plane_axes: 'mine' is not one of"),
    ],
)
def test_settings_of_the_scene(
    setting: str, value: Any, message: str, G: Generator, ws: Tensor
) -> None:
    """They may be changed between any two pictures."""
    G.synthesis(ws, C)
    before = getattr(G.rendering, setting)
    setattr(G.rendering, setting, value)
    for call in (
        lambda: G.synthesis(ws, C),
        lambda: G.query(torch.zeros(2, 5, 3), torch.zeros(2, 3, 4, 8, 8)),
    ):
        with pytest.raises(UserError, match=message):
            call()
    setattr(G.rendering, setting, before)
    G.synthesis(ws, C)


def test_a_list_is_a_background(G: Generator, ws: Tensor) -> None:
    before = G.rendering.background
    G.rendering.background = [1.0, 1.0, 1.0]  # type: ignore[assignment]
    white = G.synthesis(ws, C).image_raw
    G.rendering.background = (1.0, 1.0, 1.0)
    assert torch.equal(G.synthesis(ws, C).image_raw, white)
    G.rendering.background = before


def test_arguments_of_the_discriminator() -> None:
    D = Discriminator(tiny_config().model)
    image, raw = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 8, 8)
    assert D(image, raw, C).shape == (2, 1)
    for arguments, message in (
        ((raw, raw, C), r"image must have shape \(N, 3, 32, 32\), not \(2, 3, 8, 8\)"),
        ((image, raw[0], C), r"image_raw must have shape .*; a single one is image_raw\[None\]"),
        ((image, raw, C[0]), r"c must have shape \(N, 25\), not \(25,\)"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            D(*arguments)
