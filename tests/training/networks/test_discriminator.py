"""The discriminator against a float64 statement of the whole network, and its gradients of both
orders.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import references
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.config.settings import DiscriminatorConfig, ModelConfig
from training.networks import discriminator
from training.networks.discriminator import Discriminator, DiscriminatorBlock, append_minibatch_std
from training.networks.layers import Conv2d, FullyConnected

RESIDUAL = math.sqrt(0.5)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(resolution: int = 16, **options: Any) -> Discriminator:
    """A small discriminator with biases that show; 4 channels at 16, 8 at 8 and 4."""
    sizes = {"channel_base": 64, "channel_max": 8, "mapping_layers": 2, "conv_clamp": None}
    D = Discriminator(
        ModelConfig(
            resolution=resolution, discriminator=DiscriminatorConfig(**{**sizes, **options})
        )
    ).eval()
    for name, parameter in D.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=30 if "mapping.fc" in name else 0.3)
    return D


def pictures(batch: int, resolution: int = 16, raw: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    c = pack_label(
        orbit_pose(torch.randn(batch) * 0.3, torch.randn(batch) * 0.2, 2.7),
        pinhole_intrinsics(4.2647),
    )
    return torch.randn(batch, 3, resolution, resolution), torch.randn(batch, 3, raw, raw), c


# --------------------------------------------------------------------------------------------------
# Float64 statement


def convolve(
    p: dict[str, np.ndarray],
    name: str,
    x: np.ndarray,
    down: bool = False,
    gain: float = 1.0,
    clamp: float = np.inf,
) -> np.ndarray:
    """Equalised 3x3 or 1x1 convolution, reduced by two if `down`; bias, activation and clamp where
    it has a bias.
    """
    weight = p[f"{name}.weight"] / math.sqrt(p[f"{name}.weight"][0].size)
    if not down:
        x = references.correlate(x, weight, padding=weight.shape[-1] // 2)
    elif weight.shape[-1] == 3:
        x = references.correlate(
            references.filter_image(references.pad(x, 2, 2, 2, 2), references.FIR), weight, stride=2
        )
    else:
        x = references.correlate(
            references.filter_image(references.pad(x, 1, 1, 1, 1), references.FIR)[:, :, ::2, ::2],
            weight,
        )
    if f"{name}.bias" not in p:
        return x * gain
    return np.clip(
        references.lrelu(x + p[f"{name}.bias"][:, None, None], math.sqrt(2) * gain),
        -clamp * gain,
        clamp * gain,
    )


def block_loop(
    p: dict[str, np.ndarray], name: str, x: np.ndarray, clamp: float = np.inf
) -> np.ndarray:
    if f"{name}.fromrgb.weight" in p:
        x = convolve(p, f"{name}.fromrgb", x, clamp=clamp)
    shortcut = convolve(p, f"{name}.skip", x, down=True, gain=RESIDUAL)
    return shortcut + convolve(
        p,
        f"{name}.conv1",
        convolve(p, f"{name}.conv0", x, clamp=clamp),
        down=True,
        gain=RESIDUAL,
        clamp=clamp,
    )


def minibatch_std_loop(x: np.ndarray, group_size: int) -> np.ndarray:
    count = len(x)
    group = min(group_size, count)
    extra = np.zeros((count, 1, *x.shape[2:]))
    for n in range(count // group):
        members = [n + k * (count // group) for k in range(group)]
        variance = np.mean([(x[m] - x[members].mean(axis=0)) ** 2 for m in members], axis=0)
        extra[members] = np.sqrt(variance + 1e-8).mean()
    return np.concatenate([x, extra], axis=1)


def logits_loop(
    D: Discriminator, image: Tensor, raw: Tensor, c: Tensor, group_size: int = 4
) -> np.ndarray:
    p = {name: value.detach().double().numpy() for name, value in D.named_parameters()}
    resized = references.resize(raw.double().numpy(), image.shape[-1])
    x = np.concatenate([image.double().numpy(), resized], axis=1)
    size = image.shape[-1]
    while size > 4:
        x = block_loop(p, f"b{size}", x)
        size //= 2
    x = convolve(p, "b4.conv", minibatch_std_loop(x, group_size)).reshape(len(x), -1)
    x = references.lrelu(references.linear(x, p["b4.fc.weight"], p["b4.fc.bias"]))
    x = references.linear(x, p["b4.out.weight"], p["b4.out.bias"])
    mapped = references.unit_moment(
        references.linear(c.double().numpy(), p["mapping.embed.weight"], p["mapping.embed.bias"])
    )
    for index in range(D.mapping.num_layers):
        mapped = references.lrelu(
            references.linear(
                mapped, p[f"mapping.fc{index}.weight"], p[f"mapping.fc{index}.bias"], 0.01
            )
        )
    return (x * mapped).sum(axis=1, keepdims=True) / math.sqrt(x.shape[1])


@pytest.mark.parametrize("raw", [8, 16, 32])
@pytest.mark.parametrize(("batch", "group_size"), [(1, 4), (2, 4), (8, 4), (6, 3)])
def test_logits(batch: int, group_size: int, raw: int) -> None:
    D, inputs = build(mbstd_group_size=group_size), pictures(batch, raw=raw)
    logits = D(*inputs)
    assert logits.shape == (batch, 1)
    np.testing.assert_allclose(logits.detach(), logits_loop(D, *inputs, group_size), atol=1e-4)


def test_a_discriminator_of_another_size_with_eight_mapping_layers() -> None:
    D, inputs = build(32, channel_base=128, mapping_layers=8), pictures(4, resolution=32)
    np.testing.assert_allclose(D(*inputs).detach(), logits_loop(D, *inputs), atol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_clamp_of_each_branch_carries_the_branchs_gain(first: bool) -> None:
    block = DiscriminatorBlock(4, 5, 6 if first else 0, conv_clamp=0.8)
    nn.init.normal_(block.get_parameter("conv1.bias"))
    x = torch.randn(2, 6 if first else 4, 8, 8) * 3
    p = {f"b.{name}": value.detach().double().numpy() for name, value in block.named_parameters()}
    np.testing.assert_allclose(
        block(x).detach(), block_loop(p, "b", x.double().numpy(), clamp=0.8), atol=1e-5
    )


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (3, 2, 4, 4), (1, 2, 4, 4), (12, 2, 2, 2)])
def test_minibatch_standard_deviation(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    np.testing.assert_allclose(
        append_minibatch_std(x, 4), minibatch_std_loop(x.numpy(), 4), rtol=1e-12
    )


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("c_noise", [0.0, 0.5])
def test_batches_at_once_are_as_in_turn(
    monkeypatch: pytest.MonkeyPatch, size: int, c_noise: float
) -> None:
    monkeypatch.setattr(
        discriminator, "randn", lambda *shape, **_: torch.ones(shape)
    )  # leaves of the noise on c what depends on the batch: its scale
    D = build(c_noise=c_noise)
    image, raw, c = pictures(2 * size)
    together = D(image, raw, c, batches=2)
    in_turn = torch.cat(
        [D(*given) for given in zip(*(values.chunk(2) for values in (image, raw, c)), strict=True)]
    )
    torch.testing.assert_close(together, in_turn, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_divide_into_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 6 does not divide into groups of 4"):
        append_minibatch_std(torch.randn(6, 2, 4, 4), 4)


# --------------------------------------------------------------------------------------------------
# Structure


@pytest.mark.parametrize("resolution", [64, 128, 256, 512, 1024])
def test_published_structure(resolution: int) -> None:
    with torch.device("meta"):
        D = Discriminator(ModelConfig(resolution=resolution))
        assert D(
            torch.empty(4, 3, resolution, resolution), torch.empty(4, 3, 64, 64), torch.empty(4, 25)
        ).shape == (4, 1)
    shapes = {name: tuple(parameter.shape) for name, parameter in D.named_parameters()}
    sizes = [1 << k for k in range(3, resolution.bit_length())]
    assert {int(name[1:].split(".")[0]) for name in shapes if name.startswith("b")} == {4, *sizes}
    for size in sizes:
        width, narrower = min(32768 // size, 512), min(32768 // (size // 2), 512)
        assert shapes[f"b{size}.conv0.weight"] == (width, width, 3, 3)
        assert shapes[f"b{size}.conv1.weight"] == (narrower, width, 3, 3)
        assert shapes[f"b{size}.skip.weight"] == (narrower, width, 1, 1)
        assert f"b{size}.skip.bias" not in shapes
        assert (f"b{size}.fromrgb.weight" in shapes) == (size == resolution)
    assert shapes[f"b{resolution}.fromrgb.weight"][1] == 6
    assert shapes["b4.conv.weight"] == (512, 513, 3, 3)
    assert shapes["mapping.embed.weight"] == (512, 25)
    assert (
        len([name for name in shapes if name.startswith("mapping.fc") and name.endswith("weight")])
        == 8
    )


@pytest.mark.parametrize(
    ("channel_base", "channel_max", "width"), [(2048, 256, 256), (512, 256, 128), (128, 512, 32)]
)
def test_width_of_the_camera_branch(channel_base: int, channel_max: int, width: int) -> None:
    D = build(16, channel_base=channel_base, channel_max=channel_max)
    assert D.mapping.embed.weight.shape == (width, 25)
    assert D.b4.out.weight.shape == (width, width)


# --------------------------------------------------------------------------------------------------
# Camera noise, precision, gradients


def test_noise_on_the_camera_leaves_the_callers_tensor_alone() -> None:
    D, (image, raw, c) = build(c_noise=1.0), pictures(8)
    before, still = c.clone(), build()
    still.load_state_dict(D.state_dict())
    first, second = D(image, raw, c), D(image, raw, c)
    assert torch.equal(c, before)
    assert not torch.equal(first, second)
    assert torch.equal(still(image, raw, c), still(image, raw, c))


def test_noise_on_the_camera_is_in_units_of_its_deviation() -> None:
    """Seen through the camera branch's first layer: numbers that are equal for the whole batch get
    none.
    """
    D, (image, raw, c) = build(c_noise=0.5), pictures(4096, raw=4)
    seen: list[Tensor] = []
    D.mapping.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1].detach()))
    with torch.no_grad():
        D(image, raw, c)
    noise, deviation = seen[0] - c, c.std(dim=0)
    varies = deviation > 1e-6
    assert torch.all(noise[:, ~varies].abs() < 1e-6)
    torch.testing.assert_close(
        noise[:, varies].std(dim=0), 0.5 * deviation[varies], rtol=0.06, atol=0
    )


def test_noise_on_the_camera_of_a_single_sample_is_finite() -> None:
    D, inputs = build(c_noise=1.0), pictures(1)
    assert D(*inputs).isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("highest", [None, 1])
def test_low_precision(dtype: torch.dtype, tolerance: float, highest: int | None) -> None:
    D, inputs = build(conv_clamp=256.0, channel_base=256, channel_max=16), pictures(4)
    expected = D(*inputs)
    D.set_conv_dtype(dtype, highest)
    result = D(*inputs)
    assert result.dtype == torch.float32
    assert 0 < (result - expected).abs().max() < tolerance * expected.abs().max()
    blocks = [D.get_submodule(f"b{size}") for size in (16, 8)]
    assert [block.conv_dtype for block in blocks] == [
        dtype,
        dtype if highest is None else torch.float32,
    ]


def test_gradients_of_both_orders_through_the_discriminators_layers() -> None:
    first, down = Conv2d(2, 3, 1).double(), Conv2d(3, 3, 3, down=2, conv_clamp=256).double()
    skip, last = (
        Conv2d(3, 3, 1, bias=False, activation="linear", down=2).double(),
        FullyConnected(4 * 4, 1).double(),
    )

    def logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = first(x)
        branch = torch.func.functional_call(
            down, {"weight": weight, "bias": bias}, (hidden, RESIDUAL)
        )
        hidden = skip(hidden, gain=RESIDUAL) + branch
        return last(append_minibatch_std(hidden, 2).flatten(1))

    inputs = (
        torch.randn(2, 2, 4, 4).double(),
        torch.randn(3, 3, 3, 3).double(),
        torch.randn(3).double(),
    )
    assert torch.autograd.gradcheck(logits, tuple(tensor.requires_grad_() for tensor in inputs))
    assert torch.autograd.gradgradcheck(logits, inputs)
