"""The operators render_rays and decode_points by themselves: registration, derivatives, arithmetic,
order of sums.

That they compute what training/rendering defines is shown in
tests/training/rendering/test_fused.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.operators import on_path
from torch_utils.ops import decode_points as points_op
from torch_utils.ops import render_rays as rays_op
from torch_utils.ops.decode_points import DecoderWeights, decode_points

# arguments are given in groups here, which type checkers cannot follow
render_rays: Any = rays_op.render_rays


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    torch.manual_seed(0)
    with on_path("cpp"):
        yield


def random_decoder(
    features: int, hidden: int, colors: int, dtype: torch.dtype = torch.float64
) -> DecoderWeights:
    shapes = ((hidden, features), (hidden,), (1 + colors, hidden), (1 + colors,))
    return DecoderWeights(*(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes))


def random_rays(
    samples: int, rays: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origins, directions, near and far of rays through the box of side one."""
    directions = torch.nn.functional.normalize(torch.randn(samples, rays, 3, dtype=dtype), dim=-1)
    origins = torch.rand(samples, rays, 3, dtype=dtype) * 0.4 - 0.2 - 2 * directions
    near, far = 1.5 + torch.rand(2, samples, rays, 1, dtype=dtype) * torch.tensor([0.1, 0.9]).view(
        2, 1, 1, 1
    )
    return origins, directions, near, far + 0.2


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "released": {"plane_axes": "released", "fine_sampling": "released"},
    "background": {"background": (0.3, 0.6, 0.9), "density_gain": 2.5},
}


def arguments(
    name: str, fine: int, hit: Tensor | None = None, features: int = 3
) -> tuple[list[Any], dict[str, Any]]:
    planes = (
        torch.randn(2, 3, 4, 5, features, dtype=torch.float64)
        .permute(0, 1, 4, 2, 3)
        .requires_grad_()
    )
    rays = [value.requires_grad_() for value in random_rays(2, 3)]
    u_fine = torch.rand(2, 3, fine, dtype=torch.float64) if fine else None
    tensors = [
        planes,
        random_decoder(features, 5, 4),
        *rays,
        hit,
        torch.rand(2, 3, 4, dtype=torch.float64),
        u_fine,
    ]
    return tensors, {"box_warp": 1.1, **SETTINGS[name]}


# --------------------------------------------------------------------------------------------------
# Registration


@pytest.mark.parametrize("fine", [0, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_render_rays_passes_opcheck(name: str, fine: int) -> None:
    tensors, settings = arguments(
        name, fine, hit=torch.tensor([True, False, True]).view(1, 3, 1).expand(2, 3, 1).contiguous()
    )
    flat = [tensors[0], *tensors[1], *tensors[2:]]
    released = settings.get("plane_axes") == "released", settings.get("fine_sampling") == "released"
    flat += [1.1, *released, settings.get("density_gain", 1.0), settings.get("background"), 0.0]
    torch.library.opcheck(torch.ops.open_eg3d.render_rays.default, tuple(flat))


@pytest.mark.parametrize("with_colors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_points_passes_opcheck(with_colors: bool, dtype: torch.dtype) -> None:
    planes = (
        torch.randn(2, 3, 5, 6, 6).to(dtype, memory_format=torch.channels_last_3d).requires_grad_()
    )
    weights = random_decoder(5, 7, 3, torch.float32)
    points = torch.rand(2, 9, 3) - 0.5
    flat = [planes, *weights, points.requires_grad_(), 1.0, False, 1.5, with_colors]
    torch.library.opcheck(torch.ops.open_eg3d.decode_points.default, tuple(flat))


@pytest.mark.parametrize("module", [points_op, rays_op])
def test_self_checks_pass(module: Any) -> None:
    checks = list(module.self_checks())
    assert len(checks) > 5
    for check in checks:
        error = (check.result - check.expected).abs().max() / check.expected.abs().max()
        assert error <= check.tolerance, check.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 2, 3, 4, 4).double()}, "planes must be"),
        ({0: torch.zeros(1, 3, 3, 4, 4).double()}, "samples"),
        ({0: torch.zeros(2, 3, 3, 4, 4)}, "planes are Float"),
        ({2: torch.zeros(2, 3, 2).double()}, "rays must be"),
        ({4: torch.zeros(2, 3).double()}, "limits must be"),
        ({7: torch.rand(2, 3, 1).double()}, "S at least 2"),
        ({6: torch.ones(2, 3, 1)}, "hit must be bool"),
        ({1: random_decoder(4, 5, 4)}, "does not fit 3 features"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[int, Any], message: str) -> None:
    tensors, settings = arguments("plain", 5)
    for index, value in change.items():
        tensors[index] = value
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        render_rays(*tensors, **settings)


# --------------------------------------------------------------------------------------------------
# Derivatives


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_a_single_pass(name: str) -> None:
    tensors, settings = arguments(
        name, 0, hit=torch.tensor([True, True, False]).view(1, 3, 1).expand(2, 3, 1).contiguous()
    )

    def render(planes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return render_rays(planes, DecoderWeights(*rest[:4]), *rest[4:], *tensors[6:], **settings)

    assert torch.autograd.gradcheck(render, (tensors[0], *tensors[1], *tensors[2:6]))


@pytest.mark.parametrize(("name", "coarse"), [("plain", 2), ("released", 3), ("background", 2)])
def test_gradients_of_two_passes(name: str, coarse: int) -> None:
    """With a single bin to draw from, fine depths do not depend on the densities, so that
    differences and derivatives must agree.
    """
    tensors, settings = arguments(name, 6)
    # fine depths do depend on these, without a gradient
    limits = [tensors[4].detach(), tensors[5].detach()]
    offsets: Any = torch.rand(2, 3, coarse, dtype=torch.float64), tensors[8]

    def render(planes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return render_rays(
            planes, DecoderWeights(*rest[:4]), *rest[4:], *limits, None, *offsets, **settings
        )

    assert torch.autograd.gradcheck(render, (tensors[0], *tensors[1], *tensors[2:4]))


@pytest.mark.parametrize("axes", ["corrected", "released"])
@pytest.mark.parametrize("with_colors", [True, False])
def test_gradients_of_points(axes: Any, with_colors: bool) -> None:
    planes = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64).permute(0, 1, 4, 2, 3).requires_grad_()
    points = (torch.rand(2, 6, 3, dtype=torch.float64) * 1.4 - 0.7).requires_grad_()

    def decode(planes: Tensor, points: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        settings = {
            "box_warp": 1.1,
            "plane_axes": axes,
            "density_gain": 1.5,
            "with_colors": with_colors,
        }
        densities, colors = decode_points(planes, DecoderWeights(*weights), points, **settings)
        return (densities, colors) if with_colors else (densities,)

    assert torch.autograd.gradcheck(decode, (planes, points, *random_decoder(3, 5, 4)))


def test_second_derivatives_are_refused() -> None:
    tensors, settings = arguments("plain", 5)
    (first,) = torch.autograd.grad(
        render_rays(*tensors, **settings)[0].sum(), tensors[0], create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.square().sum().backward()


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("wanted", [0, 2, 3, 4, 5])
def test_a_single_gradient_is_that_of_all_together(output: int, wanted: int) -> None:
    tensors, settings = arguments("background", 5)
    everything = torch.autograd.grad(
        render_rays(*tensors, **settings)[output].sum(), tensors[wanted]
    )
    for index, value in enumerate(tensors):
        if isinstance(value, Tensor) and index != wanted:
            tensors[index] = value.detach()
    tensors[1] = DecoderWeights(*(w.detach() for w in tensors[1]))
    alone = torch.autograd.grad(render_rays(*tensors, **settings)[output].sum(), tensors[wanted])
    assert torch.equal(everything[0], alone[0])


# --------------------------------------------------------------------------------------------------
# Arithmetic


ARGUMENTS = np.concatenate(
    [np.linspace(-30, 30, 4001), np.geomspace(1e-8, 80, 200), -np.geomspace(1e-8, 85, 200)]
).astype(np.float32)


PIECE = 50  # of these at once: kernels on GPUs refuse decoders that do not fit into shared memory


def hidden_layer(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations of hidden units with these biases and nothing else to go on, and the activation's
    derivatives, from two gradients.
    """
    pieces = [
        _hidden_layer(values[first : first + PIECE]) for first in range(0, len(values), PIECE)
    ]
    activations, slopes = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return activations, slopes


def _hidden_layer(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(values)
    weights = [
        torch.zeros(count, 1),
        torch.from_numpy(values),
        torch.ones(2, count),
        torch.zeros(2),
    ]
    decoder = DecoderWeights(*(w.requires_grad_() for w in weights))
    densities, _ = decode_points(
        torch.zeros(1, 3, 1, 2, 2), decoder, torch.zeros(1, 1, 3), box_warp=1.0
    )
    of_w1, of_b0 = torch.autograd.grad(densities.sum(), (decoder.w1, decoder.b0))
    return of_w1[0].numpy(), of_b0.numpy()


def test_softplus_and_its_slope() -> None:
    values, slopes = hidden_layer(ARGUMENTS)
    x = ARGUMENTS.astype(np.float64)
    np.testing.assert_allclose(values, np.logaddexp(0, x), rtol=4e-7)
    np.testing.assert_allclose(slopes, 1 / (1 + np.exp(-x)), rtol=4e-7)


def test_softplus_of_extreme_numbers() -> None:
    values, slopes = hidden_layer(
        np.array([-np.inf, -1e30, -200, -104.5, 200, 1e30], dtype=np.float32)
    )
    np.testing.assert_array_equal(values, np.array([0, 0, 0, 0, 200, 1e30], dtype=np.float32))
    np.testing.assert_array_equal(slopes, [0, 0, 0, 0, 1, 1])
    tiny = np.array([-100, -95, -90], dtype=np.float32)
    np.testing.assert_allclose(
        hidden_layer(tiny)[0], np.exp(tiny.astype(np.float64)), rtol=1e-6, atol=2e-45
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_not_hidden(value: float) -> None:
    assert not np.isfinite(hidden_layer(np.array([0, value, 1], dtype=np.float32))[0][1])
    planes = torch.zeros(1, 3, 4, 8, 8)
    planes[:, :, :, 4, 4] = value
    with torch.no_grad():
        decoder = random_decoder(4, 8, 3, torch.float32)
        densities, _ = decode_points(
            planes, decoder, torch.tensor([[[0.07, 0.07, 0.07], [-0.4, -0.4, -0.4]]]), box_warp=1.0
        )
        assert densities.isfinite().flatten().tolist() == [False, True]
        rays: Any = [ray.float() for ray in random_rays(1, 5)]
        rays[0], rays[1] = (
            torch.tensor([0.05, 0.05, -2.0]).expand(1, 5, 3),
            torch.tensor([0.0, 0.0, 1.0]).expand(1, 5, 3),
        )
        features, _, _ = render_rays(
            planes, decoder, *rays, None, torch.rand(1, 5, 24), torch.rand(1, 5, 24), box_warp=1.0
        )
    assert features.isnan().any()


@pytest.mark.parametrize("first", range(0, len(ARGUMENTS), PIECE))
def test_sigmoid(first: int) -> None:
    x = ARGUMENTS[first : first + PIECE]
    decoder = DecoderWeights(
        torch.zeros(1, 1),
        torch.zeros(1),
        torch.zeros(1 + len(x), 1),
        torch.cat([torch.zeros(1), torch.from_numpy(x)]),
    )
    _, colors = decode_points(
        torch.zeros(1, 3, 1, 2, 2), decoder, torch.zeros(1, 1, 3), box_warp=1.0
    )
    expected = 1.002 / (1 + np.exp(-x.astype(np.float64))) - 0.001
    np.testing.assert_allclose(colors[0, 0].numpy(), expected, rtol=0, atol=2e-7)


# --------------------------------------------------------------------------------------------------
# Order of sums


def gradients(rays: int, threads: int, dtype: torch.dtype) -> list[Tensor]:
    """Outputs and all gradients of a fixed scene, large enough for several blocks and chunks."""
    torch.manual_seed(3)
    planes = torch.randn(2, 3, 9, 11, 21).to(dtype).permute(0, 1, 4, 2, 3).requires_grad_()
    decoder = random_decoder(21, 10, 17, torch.float32)
    tensors: Any = [value.float().requires_grad_() for value in random_rays(2, rays)]
    offsets: Any = torch.rand(2, rays, 12), torch.rand(2, rays, 13)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outputs = render_rays(planes, decoder, *tensors, None, *offsets, box_warp=1.0)
        densities, colors = decode_points(
            planes, decoder, torch.rand(2, 3000, 3) - 0.5, box_warp=1.0
        )
        loss = torch.stack([o.square().mean() for o in (*outputs, densities, colors)]).sum()
        return [*outputs, *torch.autograd.grad(loss, (planes, *decoder, *tensors))]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rays", [1, 49, 2304])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads_or_chance(rays: int, dtype: torch.dtype) -> None:
    first = gradients(rays, 1, dtype)
    for threads in (1, 2, 3):
        for a, b in zip(first, gradients(rays, threads, dtype), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["channels_last", "texels", "contiguous", "expanded"])
def test_the_gradient_has_the_layout_of_the_planes(layout: str) -> None:
    planes = {
        "channels_last": torch.randn(2, 12, 5, 6)
        .to(memory_format=torch.channels_last)
        .unflatten(1, (3, 4)),
        "texels": torch.randn(2, 3, 5, 6, 4).permute(0, 1, 4, 2, 3),
        "contiguous": torch.randn(2, 3, 4, 5, 6),
        "expanded": torch.randn(1, 3, 5, 6, 4).permute(0, 1, 4, 2, 3).expand(2, -1, -1, -1, -1),
    }[layout]
    decoder, points = random_decoder(4, 8, 3, torch.float32), torch.rand(2, 40, 3) - 0.5
    gradient = torch.ops.open_eg3d.decode_points_backward(
        torch.ones(2, 40, 1), None, planes, *decoder, points, 1.0, False, 1.0, True, False, False
    )[0]
    if layout != "expanded":
        assert gradient.stride() == planes.stride()
    leaf = planes.clone(memory_format=torch.contiguous_format).requires_grad_()
    (expected,) = torch.autograd.grad(
        points_op.plain_decode(leaf, decoder, points, 1.0)[0].sum(), leaf
    )
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
