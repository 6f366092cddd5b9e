"""What takes the place of PyTorch's functions whose gradients on CUDA come out differently each
time, beside them, in fp64 on the CPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_utils import determinism


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 32), (32, 32, 12), (9, 5, 7)])
def test_resize_by_matrices(height: int, width: int, size: int, antialias: bool) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, size, size, dtype=torch.float64)
    found = determinism.resize(x, size, antialias)
    expected = F.interpolate(
        x, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(y, x, grad)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_grid_sample_by_indices(align_corners: bool) -> None:
    """Points inside, on the edge and outside; gradients of both orders."""
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    grid = torch.rand(2, 6, 4, 2, dtype=torch.float64) * 2.6 - 1.3
    grid[0, 0, :2] = torch.tensor([[-1.0, 1.0], [1.0, 0.0]])
    found = determinism.look_up_pixels(x, grid, align_corners)
    expected = F.grid_sample(x, grid, align_corners=align_corners)
    assert torch.equal(determinism.grid_sample(x, grid, align_corners), expected)  # on a CPU
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), x, create_graph=True)[0] for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*(torch.autograd.grad(g.pow(3).sum(), x)[0] for g in gradients))
