"""Gaussians on a picture: a loop over pixels written out in fp64, and gradients, on either path."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_utils.ops.rasterize_gaussians import (
    random_gaussians,
    rasterize_gaussians,
    self_checks,
)

HEIGHT, WIDTH = 37, 21  # tiles at two borders are cut


def draw(inputs: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    means, conics, opacities, colors = inputs
    return rasterize_gaussians(means, conics, opacities, colors, height, width)


def pixel(inputs: list[np.ndarray], x: float, y: float) -> np.ndarray:
    """Colour and alpha of one pixel, Gaussian after Gaussian (Kerbl et al., equation 3)."""
    light, color = 1.0, np.zeros(3)
    for mean, (a, b, c), opacity, own in zip(*inputs, strict=True):
        dx, dy = x - mean[0], y - mean[1]
        alpha = min(0.99, opacity * math.exp(-(a * dx * dx + 2 * b * dx * dy + c * dy * dy) / 2))
        if alpha >= 1 / 255:
            color += light * alpha * own
            light *= 1 - alpha
    return np.append(color, 1 - light)


@pytest.mark.usefixtures("path")
def test_formula() -> None:
    inputs = random_gaussians(200, 30.0, torch.float64)
    image, alpha = draw(inputs, HEIGHT, WIDTH)
    found = torch.cat([image, alpha[..., None]], dim=-1).numpy()
    arrays = [value.numpy() for value in inputs]
    expected = [[pixel(arrays, x + 0.5, y + 0.5) for x in range(WIDTH)] for y in range(HEIGHT)]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-12)
    assert 0.5 < alpha.mean() < 0.999


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("height", "width"), [(9, 7), (3, 18)])
def test_gradients(height: int, width: int) -> None:
    inputs = [value.requires_grad_() for value in random_gaussians(14, 9.0, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: draw(x, height, width), inputs)


@pytest.mark.usefixtures("path")
def test_what_cannot_be_drawn_is_left_out() -> None:
    """Nothing at all, beside the picture, too faint, without an area, or not a number."""
    none = [value[:0] for value in random_gaussians(1, 9.0, torch.float32)]
    assert not torch.cat([part.flatten() for part in draw(none, 5, 6)]).any()
    places = [[1e9, 3.0], [2.0, -1e9], [3.0, 3.0], [3.0, 3.0], [3.0, 3.0], [float("nan"), 3.0]]
    means = torch.tensor(places, requires_grad=True)
    conics = torch.tensor([[1.0, 0.0, 1.0]]).repeat(6, 1)
    conics[4] = 0
    opacities = torch.tensor([0.9, 0.9, 0.003, 0.0, 0.9, 0.9])
    image, alpha = rasterize_gaussians(means, conics, opacities, torch.ones(6, 3), 6, 6)
    assert not image.any()
    assert not alpha.any()
    image.sum().backward()
    assert means.grad is not None
    assert not means.grad[:5].any()


@pytest.mark.usefixtures("path")
def test_the_first_hides_the_second() -> None:
    means = torch.full((2, 2), 2.5)
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    image, alpha = rasterize_gaussians(
        means, torch.tensor([[1.0, 0.0, 1.0]]).repeat(2, 1), torch.ones(2), colors, 5, 5
    )
    torch.testing.assert_close(image[2, 2], torch.tensor([0.99, 0.0099, 0.0]))
    assert alpha[2, 2] == pytest.approx(0.9999)


@pytest.mark.usefixtures("kernels")
def test_kernels_beside_the_reference() -> None:
    for check in self_checks():
        assert check.error <= check.tolerance, check.name


@pytest.mark.usefixtures("kernels")
def test_operator_properties() -> None:
    inputs = random_gaussians(20, 9.0, torch.float64)
    operands = [value.requires_grad_() for value in inputs]
    torch.library.opcheck(torch.ops.open_eg3d.rasterize_gaussians.default, (*operands, 9, 7))


@pytest.mark.usefixtures("kernels")
def test_sums_do_not_depend_on_threads() -> None:
    def gradients(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        inputs = [value.requires_grad_() for value in random_gaussians(300, 60.0, torch.float32)]
        image, alpha = draw(inputs, 64, 64)
        found = torch.autograd.grad((image**2).sum() + alpha.sum(), inputs)
        torch.set_num_threads(before)
        return list(found)

    for one, other in zip(gradients(1), gradients(4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [{0: (5, 3)}, {1: (5, 2)}, {2: (4,)}, {3: (5, 4)}])
def test_other_shapes_are_refused(wrong: dict[int, tuple[int, ...]]) -> None:
    inputs = random_gaussians(5, 9.0, torch.float32)
    inputs = [torch.zeros(wrong[i]) if i in wrong else value for i, value in enumerate(inputs)]
    with pytest.raises(ValueError, match="of shape"):
        draw(inputs, 4, 4)
