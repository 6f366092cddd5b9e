"""Mapping and synthesis against float64 loops over their stored parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import references
from training.networks.stylegan2 import (
    MappingNetwork,
    SynthesisBlock,
    SynthesisLayer,
    SynthesisNetwork,
    ToRGB,
    block_resolutions,
    channels_at,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def shake(module: nn.Module) -> None:
    """Give every parameter that starts at zero a value that shows."""
    for name, parameter in module.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


# --------------------------------------------------------------------------------------------------
# Mapping


def mapping_reference(network: MappingNetwork, z: np.ndarray | None, c: np.ndarray) -> np.ndarray:
    p = values(network)
    x = references.unit_moment(references.linear(c, p["embed.weight"], p["embed.bias"]))
    if z is not None:
        x = np.concatenate([references.unit_moment(z), x], axis=1)
    for index in range(network.num_layers):
        x = references.lrelu(
            references.linear(x, p[f"fc{index}.weight"], p[f"fc{index}.bias"], 0.01)
        )
    return x


def random_mapping(z_dim: int = 6, num_ws: int | None = 5, num_layers: int = 2) -> MappingNetwork:
    network = MappingNetwork(z_dim, 25, 8, num_ws, num_layers, lr_multiplier=0.01)
    for index in range(num_layers):
        nn.init.normal_(network.get_parameter(f"fc{index}.bias"), std=30)
    nn.init.normal_(network.embed.bias)
    if num_ws is not None:
        nn.init.normal_(network.w_avg)
    return network


@pytest.mark.parametrize("num_layers", [1, 2, 8])
def test_mapping(num_layers: int) -> None:
    network, z, c = random_mapping(num_layers=num_layers), torch.randn(3, 6) * 4, torch.randn(3, 25)
    ws = network(z, c)
    assert ws.shape == (3, 5, 8)
    expected = mapping_reference(network, z.double().numpy(), c.double().numpy())
    for layer in range(5):
        np.testing.assert_allclose(ws[:, layer].detach(), expected, atol=1e-5)
    torch.testing.assert_close(network(z * 7, c), ws)


def test_mapping_without_latent_and_layers() -> None:
    network, c = random_mapping(z_dim=0, num_ws=None, num_layers=8), torch.randn(3, 25)
    np.testing.assert_allclose(
        network(None, c).detach(), mapping_reference(network, None, c.double().numpy()), atol=1e-5
    )
    assert "w_avg" not in network.state_dict()


def test_mapping_without_camera() -> None:
    network, z = MappingNetwork(6, 0, 8, 5, num_layers=2, lr_multiplier=0.5), torch.randn(3, 6) * 4
    nn.init.normal_(network.get_parameter("fc0.bias"))
    p, x = values(network), references.unit_moment(z.double().numpy())
    for index in range(2):
        x = references.lrelu(
            references.linear(x, p[f"fc{index}.weight"], p[f"fc{index}.bias"], 0.5)
        )
    np.testing.assert_allclose(network(z, None)[:, 3].detach(), x, atol=1e-5)


@torch.no_grad()
def share_that_varies(network: MappingNetwork, c: Tensor | None) -> float:
    w = network(torch.randn(1000, 64), c)[:, 0]
    return float(w.var(dim=0).sum() / w.square().sum(dim=1).mean())


def test_latents_drown_in_the_embedding_of_a_constant_and_not_without() -> None:
    c = torch.zeros(1000, 25)
    released, plain = (
        MappingNetwork(64, 25, 128, 5, 2, 0.01),
        MappingNetwork(64, 0, 128, 5, 2, 0.01),
    )
    before = share_that_varies(released, c), share_that_varies(plain, None)
    for network, labels in ((released, c), (plain, None)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.0025)
        network(torch.randn(1000, 64), labels).mean().backward()
        optimizer.step()
    assert share_that_varies(released, c) < before[0] / 2
    assert share_that_varies(plain, None) == pytest.approx(before[1], rel=0.05)


@pytest.mark.parametrize(
    ("psi", "cutoff"),
    [(0.7, None), (0.7, 3), (0.0, 2), (-1.0, None), (1.0, 2), (0.5, 0), (0.5, 99)],
)
def test_truncation(psi: float, cutoff: int | None) -> None:
    network, z, c = random_mapping(), torch.randn(3, 6), torch.randn(3, 25)
    full, truncated = network(z, c), network(z, c, psi, cutoff)
    for layer in range(5):
        applies = cutoff is None or layer < cutoff
        expected = (
            network.w_avg + psi * (full[:, layer] - network.w_avg) if applies else full[:, layer]
        )
        torch.testing.assert_close(truncated[:, layer], expected)
    assert truncated.grad_fn is not None


def test_the_running_mean_moves_only_when_asked() -> None:
    network, z, c = random_mapping(), torch.randn(4, 6), torch.randn(4, 25)
    before = network.w_avg.clone()
    ws = network(z, c, truncation_psi=0.5)
    assert torch.equal(network.w_avg, before)
    moved = network(z, c, update_w_avg=True)
    torch.testing.assert_close(network.w_avg, 0.998 * before + 0.002 * moved[:, 0].mean(dim=0))
    assert not network.w_avg.requires_grad
    assert not torch.equal(ws, moved)


# --------------------------------------------------------------------------------------------------
# Layers of the synthesis network


def style(p: dict[str, np.ndarray], name: str, w: Tensor) -> np.ndarray:
    return references.linear(w.double().numpy(), p[f"{name}.weight"], p[f"{name}.bias"])


def layer_reference(
    layer: SynthesisLayer, x: Tensor, w: Tensor, noise: np.ndarray | float = 0.0
) -> np.ndarray:
    p = values(layer)
    result = references.modulated(
        x.double().numpy(), p["weight"], style(p, "affine", w), up=layer.up
    )
    return references.lrelu(result + noise + p["bias"][:, None, None])


def torgb_reference(layer: ToRGB, x: Tensor, w: Tensor) -> np.ndarray:
    p = values(layer)
    styles = style(p, "affine", w) / np.sqrt(x.shape[1])
    return (
        references.modulated(x.double().numpy(), p["weight"], styles, demodulate=False)
        + p["bias"][:, None, None]
    )


def random_layer(
    up: int = 1, use_noise: bool = True, conv_clamp: float | None = None
) -> SynthesisLayer:
    layer = SynthesisLayer(3, 4, 6, 4 * up, up, use_noise, conv_clamp)
    assert torch.all(layer.affine.bias == 1), "styles start around one"
    shake(layer)
    return layer


@pytest.mark.parametrize("up", [1, 2])
def test_synthesis_layer(up: int) -> None:
    layer, x, w = random_layer(up), torch.randn(2, 3, 4, 4), torch.randn(2, 6)
    np.testing.assert_allclose(
        layer(x, w, "none").detach(), layer_reference(layer, x, w), atol=1e-5
    )
    noise = (layer.noise_const * layer.noise_strength).detach().double().numpy()
    np.testing.assert_allclose(
        layer(x, w, "const").detach(), layer_reference(layer, x, w, noise), atol=1e-5
    )


@pytest.mark.parametrize("use_noise", [True, False])
def test_unknown_noise_is_named(use_noise: bool) -> None:
    layer = SynthesisLayer(3, 4, 6, 4, 1, use_noise, None)
    with pytest.raises(ValueError, match="unknown noise_mode 'all'; known are random, const, none"):
        layer(torch.zeros(1, 3, 4, 4), torch.zeros(1, 6), "all")


def test_random_noise_is_one_normal_value_a_pixel_and_sample() -> None:
    layer = SynthesisLayer(3, 4, 6, 64, 1, True, None)
    x, w = torch.zeros(2, 3, 64, 64), torch.randn(2, 6)
    assert torch.all(layer(x, w, "random") == 0), "the strength starts at zero"
    nn.init.constant_(layer.noise_strength, 0.5)
    drawn = layer(x, w, "random")
    noise = torch.where(drawn > 0, drawn, drawn / 0.2) / 2**0.5
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(drawn, layer(x, w, "random"))


def test_a_layer_without_noise_ignores_the_mode_and_unknown_modes_are_refused() -> None:
    layer, x, w = random_layer(use_noise=False), torch.randn(2, 3, 4, 4), torch.randn(2, 6)
    assert set(layer.state_dict()) == {
        "weight",
        "bias",
        "resample_filter",
        "affine.weight",
        "affine.bias",
    }
    assert torch.equal(layer(x, w, "const"), layer(x, w, "none"))
    with pytest.raises(ValueError, match="unknown noise_mode 'constant'"):
        random_layer()(x, w, "constant")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamp_after_the_gain_in_every_precision(dtype: torch.dtype) -> None:
    layer, x, w = random_layer(conv_clamp=0.75), torch.randn(2, 3, 4, 4) * 10, torch.randn(2, 6)
    unclamped = layer_reference(layer, x, w)
    result = layer(x.to(dtype), w, "none").detach().float()
    assert np.abs(unclamped).max() > 1
    assert result.abs().max() == 0.75
    np.testing.assert_allclose(
        result, np.clip(unclamped, -0.75, 0.75), atol=1e-5 if dtype == torch.float32 else 0.1
    )


def test_to_colour() -> None:
    layer, x, w = ToRGB(4, 5, 6, conv_clamp=None), torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    shake(layer)
    np.testing.assert_allclose(layer(x, w).detach(), torgb_reference(layer, x, w), atol=1e-5)
    clamped = ToRGB(4, 5, 6, conv_clamp=0.3)
    clamped.load_state_dict(layer.state_dict())
    np.testing.assert_allclose(
        clamped(x, w).detach(), np.clip(torgb_reference(layer, x, w), -0.3, 0.3), atol=1e-5
    )


# --------------------------------------------------------------------------------------------------
# Blocks and network


@pytest.mark.parametrize("up", [1, 2])
def test_block_adds_its_colour_to_the_upsampled_sum(up: int) -> None:
    block = SynthesisBlock(3, 4, 6, 4 * up, 5, up=up)
    shake(block)
    x, img, ws = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4), torch.randn(2, 3, 6)
    features, color = block(x, img, ws, "none")
    hidden = torch.from_numpy(layer_reference(block.conv0, x, ws[:, 0]))
    hidden = torch.from_numpy(layer_reference(block.conv1, hidden, ws[:, 1]))
    np.testing.assert_allclose(features.detach(), hidden, atol=1e-5)
    before = references.upsample(img.double().numpy()) if up == 2 else img.double().numpy()
    np.testing.assert_allclose(
        color.detach(), before + torgb_reference(block.torgb, hidden, ws[:, 2]), atol=1e-5
    )


def test_block_leaves_its_inputs_alone() -> None:
    block = SynthesisBlock(3, 4, 6, 4, 3, up=1)
    x, img, ws = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 6)
    copies = [tensor.clone() for tensor in (x, img, ws)]
    _, color = block(x, img, ws, "random")
    assert all(torch.equal(a, b) for a, b in zip((x, img, ws), copies, strict=True))
    assert color.data_ptr() != img.data_ptr()


@pytest.mark.parametrize(("resolution", "num_ws"), [(4, 2), (8, 4), (64, 10), (256, 14), (512, 16)])
def test_number_of_latents(resolution: int, num_ws: int) -> None:
    with torch.device("meta"):
        assert SynthesisNetwork(8, resolution, 3, 1024, 16).num_ws == num_ws


def test_channels() -> None:
    assert block_resolutions(256) == [4, 8, 16, 32, 64, 128, 256]
    assert [channels_at(r, 32768, 512) for r in (4, 64, 128, 256, 512, 1024)] == [
        512,
        512,
        256,
        128,
        64,
        32,
    ]


def test_which_latent_feeds_which_layer() -> None:
    """Latents in order of the convolutions; a block's colour layer shares that of the next block's
    first convolution.
    """
    network = SynthesisNetwork(6, 16, 5, 64, 4)
    shake(network)
    ws = torch.randn(2, 6, 6)
    table = {4: (None, 0, 1), 8: (1, 2, 3), 16: (3, 4, 5)}
    x, img = network.get_parameter("b4.const").detach().expand(2, -1, -1, -1), None
    for size, (conv0, conv1, torgb) in table.items():
        block = network.get_submodule(f"b{size}")
        assert isinstance(block, SynthesisBlock)
        if conv0 is not None:
            x = torch.from_numpy(layer_reference(block.conv0, x, ws[:, conv0]))
        x = torch.from_numpy(layer_reference(block.conv1, x, ws[:, conv1]))
        color = torgb_reference(block.torgb, x, ws[:, torgb])
        img = color if img is None else references.upsample(img) + color
    np.testing.assert_allclose(network(ws, "none").detach(), np.asarray(img), atol=1e-4)


def test_a_batch_equals_its_samples() -> None:
    network, ws = SynthesisNetwork(6, 16, 5, 64, 4), torch.randn(3, 6, 6)
    shake(network)
    together = network(ws, "const")
    for n in range(3):
        torch.testing.assert_close(
            network(ws[n : n + 1], "const"), together[n : n + 1], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_low_precision_blocks_give_nearly_the_same_picture_in_fp32(
    dtype: torch.dtype, tolerance: float
) -> None:
    network, ws = SynthesisNetwork(16, 32, 6, 1024, 32, conv_clamp=256), torch.randn(2, 8, 16)
    expected = network(ws, "const")
    for block in network.children():
        assert isinstance(block, SynthesisBlock)
        block.conv_dtype = dtype
    result = network(ws, "const")
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < tolerance * expected.abs().max()
    assert not torch.equal(result, expected)
    result.sum().backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all())
        for p in network.parameters()
    )
