"""The compiled renderer against the composable one, which defines it; and who serves which
decoder.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.operators import on_path
from torch_utils.ops import library
from training.config.settings import RenderingConfig
from training.networks.generator import TriPlaneDecoder
from training.networks.layers import FullyConnected
from training.rendering import renderer
from training.rendering.renderer import fused_weights, query, query_density, render
from training.rendering.sampling import Offsets, draw_offsets


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    torch.manual_seed(0)
    with on_path("cpp"):
        yield


def make_decoder(features: int, hidden: int, colors: int, density: float = 0.0) -> TriPlaneDecoder:
    """A decoder with biases; `density` is added to the raw density."""
    decoder = TriPlaneDecoder(features, hidden, colors)
    for name in ("net.0.bias", "net.2.bias"):
        nn.init.normal_(decoder.get_parameter(name))
    with torch.no_grad():
        decoder.get_parameter("net.2.weight")[0] *= 5
        decoder.get_parameter("net.2.bias")[0] += density
    return decoder


def make_planes(
    batch: int, channels: int, height: int = 9, width: int = 12, dtype: torch.dtype = torch.float32
) -> Tensor:
    return (
        torch.randn(batch, 3 * channels, height, width)
        .to(dtype, memory_format=torch.channels_last)
        .unflatten(1, (3, channels))
    )


def make_rays(batch: int, count: int, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Rays from all around towards the box of side one; some miss it where `spread` is large."""
    targets = (torch.rand(batch, count, 3) - 0.5) * 2 * spread
    origins = 2.7 * torch.nn.functional.normalize(torch.randn(batch, count, 3), dim=-1)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def scene(**changes: Any) -> RenderingConfig:
    return dataclasses.replace(
        RenderingConfig(depth_resolution=8, depth_resolution_importance=7), **changes
    )


def on_both_paths(run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What the compiled and the composable path give for one seed."""
    results = []
    for path in ("cpp", "reference"):
        with library.path(path):
            torch.manual_seed(1)
            results.append(run())
    return results[0], results[1]


def assert_close(run: Callable[[], list[Tensor]], tolerance: float) -> None:
    """Results differ by less than the tolerance, relative to the largest magnitude of each or to
    0.01.
    """
    for fused, plain in zip(*on_both_paths(run), strict=True):
        assert fused.shape == plain.shape
        assert fused.dtype == plain.dtype
        if plain.numel():
            limit = tolerance * max(plain.abs().max().item(), 1e-2)
            torch.testing.assert_close(fused, plain, rtol=0, atol=limit)


def gradients_of(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    loss = torch.stack([output.square().mean() * (i + 1) for i, output in enumerate(outputs)]).sum()
    return list(torch.autograd.grad(loss, inputs))


# --------------------------------------------------------------------------------------------------
# Values and gradients


@pytest.mark.parametrize("limits", [(2.25, 3.3), ("auto", "auto"), ("auto", 3.0)])
@pytest.mark.parametrize("fine_sampling", ["interval", "released"])
@pytest.mark.parametrize("plane_axes", ["corrected", "released"])
@pytest.mark.parametrize("fine", [0, 7])
@pytest.mark.parametrize("background", [None, (0.3, 0.6, 0.9)])
def test_every_setting(
    limits: Any, fine_sampling: Any, plane_axes: Any, fine: int, background: Any
) -> None:
    """In double precision, with rays that miss the box under `auto`, random offsets, and gradients
    of all inputs.
    """
    config = scene(
        ray_start=limits[0],
        ray_end=limits[1],
        fine_sampling=fine_sampling,
        plane_axes=plane_axes,
        background=background,
        depth_resolution_importance=fine,
        density_gain=1.5,
        box_warp=1.1,
    )
    planes, decoder = make_planes(2, 8).double().requires_grad_(), make_decoder(8, 16, 5).double()
    rays = [ray.double().requires_grad_() for ray in make_rays(2, 25, spread=0.8)]

    def run() -> list[Tensor]:
        outputs = tuple(render(planes, decoder, rays[0], rays[1], config))
        return [*outputs, *gradients_of(outputs, [planes, *rays, *decoder.parameters()])]

    assert_close(run, 1e-8)


@given(
    batch=st.integers(0, 2),
    rays=st.sampled_from([0, 1, 5, 16, 49]),
    coarse=st.sampled_from([2, 3, 5, 17, 50]),
    fine=st.sampled_from([0, 1, 6, 33]),
    channels=st.sampled_from([1, 3, 16, 17, 40]),
    hidden=st.sampled_from([1, 5, 16, 70]),
    colors=st.sampled_from([3, 4, 16, 19]),
    size=st.sampled_from([(1, 1), (1, 5), (7, 4), (16, 16)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    deterministic=st.booleans(),
)
@hypothesis_settings(max_examples=60, derandomize=True)
def test_every_size(
    batch: int,
    rays: int,
    coarse: int,
    fine: int,
    channels: int,
    hidden: int,
    colors: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    deterministic: bool,
) -> None:
    """In single precision, the compiled path is as near to what double precision gives as the
    composable one.
    """
    torch.manual_seed(0)
    config = scene(depth_resolution=coarse, depth_resolution_importance=fine)
    planes, decoder = (
        make_planes(batch, channels, *size, dtype=dtype),
        make_decoder(channels, hidden, colors, 6.0),
    )
    origins, directions = make_rays(batch, rays)
    offsets = draw_offsets(origins[..., :1], coarse, fine, deterministic)

    def run(compute: torch.dtype) -> list[Tensor]:
        leaf = (planes.double() if compute == torch.float64 else planes).detach().requires_grad_()
        precise = copy.deepcopy(decoder).to(compute)
        cast = Offsets(*(None if u is None else u.to(compute) for u in offsets))  # type: ignore[arg-type]
        with mock.patch.object(renderer, "draw_offsets", return_value=cast):
            features, depth, alpha = render(
                leaf, precise, origins.to(compute), directions.to(compute), config
            )
        # the depth of what is all but empty is noise
        outputs = features, depth * alpha.detach(), alpha
        if not batch * rays:
            return list(outputs)
        gradients = gradients_of(outputs, [leaf, *precise.parameters()])
        assert gradients[0].dtype == leaf.dtype
        return [*outputs, *gradients]

    with library.path("reference"):
        plain, expected = run(torch.float32), run(torch.float64)
    for fused, other, truth in zip(run(torch.float32), plain, expected, strict=True):
        assert (fused.shape, fused.dtype) == (other.shape, other.dtype)
        if truth.numel():
            error, other_error = (
                (value.double() - truth).norm().item() for value in (fused, other)
            )
            assert error <= 3 * other_error + 3e-5 * truth.norm().item() + 1e-7


@pytest.mark.parametrize("with_colors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_points(with_colors: bool, dtype: torch.dtype, count: int) -> None:
    planes, decoder = make_planes(2, 8, dtype=dtype).requires_grad_(), make_decoder(8, 16, 5)
    points, config = (
        (torch.rand(2, count, 3) * 1.4 - 0.7).requires_grad_(),
        scene(density_gain=1.5, plane_axes="released"),
    )

    def run() -> list[Tensor]:
        values = query(planes, points, decoder, config)
        outputs = values if with_colors else (query_density(planes, points, decoder, config),)
        if not with_colors:
            assert torch.equal(outputs[0], values[0])
        unused = [p for name, p in decoder.named_parameters()]
        return (
            [*outputs, *(g.float() for g in gradients_of(outputs, [planes, points, *unused]))]
            if count
            else list(outputs)
        )

    assert_close(run, 1e-4 if dtype == torch.float32 else 8e-3)


def test_opaque_scenes_without_gradients_end_their_rays_early() -> None:
    """Where no gradient is wanted, rays stop and what hardly shows is not coloured: less than 1e-4
    of a difference.
    """
    config = scene(depth_resolution=48, depth_resolution_importance=48)
    for density in (-4.0, 5.0, 30.0, 100.0):
        planes, decoder, rays = (
            make_planes(1, 8) * 3,
            make_decoder(8, 16, 5, density),
            make_rays(1, 100),
        )

        def run(planes: Tensor = planes, decoder: Any = decoder, rays: Any = rays) -> list[Tensor]:
            with torch.no_grad():
                return list(render(planes, decoder, rays[0], rays[1], config))

        for fused, plain in zip(*on_both_paths(run), strict=True):
            torch.testing.assert_close(fused, plain, rtol=0, atol=1e-4)


def test_offsets_in_disorder() -> None:
    """Limits that run backwards: coarse depths fall, and still both paths sort alike."""
    planes, decoder, rays = make_planes(1, 8), make_decoder(8, 16, 5), make_rays(1, 30)
    config = scene(ray_start=3.0, ray_end=2.4)
    assert_close(lambda: list(render(planes, decoder, rays[0], rays[1], config)), 2e-4)


def test_one_sample_seen_by_many_cameras_is_not_copied() -> None:
    planes, decoder, rays = make_planes(1, 8), make_decoder(8, 16, 5), make_rays(4, 30)
    expanded = planes.expand(4, -1, -1, -1, -1)
    many = render(expanded, decoder, rays[0], rays[1], scene(), deterministic=True)
    for n in range(4):
        alone = render(
            planes, decoder, rays[0][n : n + 1], rays[1][n : n + 1], scene(), deterministic=True
        )
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(many, alone, strict=True))
    leaf = planes.requires_grad_()

    def run() -> list[Tensor]:
        outputs = render(
            leaf.expand(4, -1, -1, -1, -1), decoder, rays[0], rays[1], scene(), deterministic=True
        )
        return gradients_of(tuple(outputs), [leaf])

    assert_close(run, 2e-4)


def test_square_pictures_and_loose_rays_give_the_same() -> None:
    """Rays of a square are followed in another order, which must not show."""
    planes, decoder, rays = make_planes(2, 8), make_decoder(8, 16, 5), make_rays(2, 256)
    square = render(planes, decoder, rays[0], rays[1], scene(), deterministic=True)
    loose = render(planes, decoder, rays[0][:, :255], rays[1][:, :255], scene(), deterministic=True)
    assert all(torch.equal(a[:, :255], b) for a, b in zip(square, loose, strict=True))


# --------------------------------------------------------------------------------------------------
# Who serves


class Brighter(TriPlaneDecoder):
    """A researcher's subclass."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        densities, colors = super().forward(features)
        return densities, colors + 1


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def other_activation(decoder: TriPlaneDecoder) -> None:
    decoder.net[1] = nn.ReLU()


def sharper_softplus(decoder: TriPlaneDecoder) -> None:
    decoder.net[1] = nn.Softplus(beta=3)


def other_layer(decoder: TriPlaneDecoder) -> None:
    decoder.net[2] = nn.Linear(16, 6)


def activated_layer(decoder: TriPlaneDecoder) -> None:
    decoder.net[2] = FullyConnected(16, 6, activation="lrelu")


def another_layer(decoder: TriPlaneDecoder) -> None:
    decoder.net.append(nn.Tanh())


def hook_on_the_decoder(decoder: TriPlaneDecoder) -> None:
    decoder.register_forward_hook(lambda _module, _inputs, output: (output[0], output[1] * 0.5))


def hook_on_a_layer(decoder: TriPlaneDecoder) -> None:
    decoder.net[0].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))


def replaced_method(decoder: TriPlaneDecoder) -> None:
    original = decoder.forward
    decoder.forward = lambda features: (original(features)[0] + 1, original(features)[1])  # type: ignore[method-assign]


def parametrised(decoder: TriPlaneDecoder) -> None:
    parametrize.register_parametrization(decoder.net[0], "weight", Doubled())


CHANGES = [
    other_activation,
    sharper_softplus,
    other_layer,
    activated_layer,
    another_layer,
    hook_on_the_decoder,
    hook_on_a_layer,
    replaced_method,
    parametrised,
]


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_a_changed_decoder_is_called(change: Callable[[TriPlaneDecoder], None] | None) -> None:
    """Whatever a researcher does to the decoder shows in the picture, exactly as on the composable
    path.
    """
    planes, decoder, rays = make_planes(1, 8), make_decoder(8, 16, 5), make_rays(1, 12)
    standard = render(planes, decoder, rays[0], rays[1], scene(), deterministic=True)
    assert fused_weights(decoder, planes, rays[0]) is not None
    changed = Brighter(8, 16, 5) if change is None else copy.deepcopy(decoder)
    if change is not None:
        change(changed)
    assert fused_weights(changed, planes, rays[0]) is None
    fused, plain = on_both_paths(
        lambda: list(render(planes, changed, rays[0], rays[1], scene(), deterministic=True))
    )
    assert all(torch.equal(a, b) for a, b in zip(fused, plain, strict=True))
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(fused, standard, strict=True))


def test_a_plain_function_is_called() -> None:
    calls = []

    def decoder(features: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(features.shape)
        return features[..., :1], features[..., 1:].sigmoid()

    render(make_planes(1, 8), decoder, *make_rays(1, 12), scene())
    assert len(calls) == 2


def test_the_standard_decoder_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "_render_composable", None)
    monkeypatch.setattr(renderer, "_decode_composable", None)
    planes, decoder, rays = make_planes(1, 8), make_decoder(8, 16, 5), make_rays(1, 12)
    render(planes, decoder, rays[0], rays[1], scene())
    query(planes, rays[0], decoder, scene())
    with library.path("reference"), pytest.raises(TypeError):
        render(planes, decoder, rays[0], rays[1], scene())


def test_autocast_gets_the_layers_that_it_asks_for() -> None:
    planes, decoder, rays = make_planes(1, 8), make_decoder(8, 16, 5), make_rays(1, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_weights(decoder, planes, rays[0]) is None


def test_planes_that_do_not_fit_the_decoder_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        render(make_planes(1, 7), make_decoder(8, 16, 5), *make_rays(1, 12), scene())


# --------------------------------------------------------------------------------------------------
# torch.compile


def test_compiles_without_a_graph_break() -> None:
    planes, decoder, rays = (
        make_planes(2, 8).requires_grad_(),
        make_decoder(8, 16, 5),
        make_rays(2, 16),
    )
    config = scene(ray_start="auto", ray_end="auto")

    def picture(planes: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        rendered = render(planes, decoder, origins, directions, config, deterministic=True)
        return *rendered, *query(planes, origins * 0.1, decoder, config)

    compiled = torch.compile(picture, fullgraph=True, backend="aot_eager")
    inputs = [planes, *decoder.parameters()]
    expected, result = picture(planes, *rays), compiled(planes, *rays)
    for a, b in zip(
        [*result, *gradients_of(result, inputs)],
        [*expected, *gradients_of(expected, inputs)],
        strict=True,
    ):
        torch.testing.assert_close(a, b)
