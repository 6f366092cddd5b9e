"""Agreement with results of the released implementation (tests/data/interop, arrays only; weights
follow one rule).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.released_layout import rule_tensor
from training.cameras import unpack_label
from training.config.settings import ModelConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.networks.layers import resize_image
from training.rendering.rays import sample_rays

DATA = Path(__file__).parents[1] / "data" / "interop"
VALUE_TOLERANCE = 1e-4  # of the array's largest magnitude
GRADIENT_TOLERANCE = 1e-3  # of the norm
NAMES = {
    "ws", "ws_psi0.7_cut3", "planes_sub", "ray_origins_sub", "ray_dirs_sub", "points_sigma",
    "points_rgb", "image", "image_raw", "image_depth", "logits", "loss_G", "real_raw_sub",
    "real_logits", "r1_penalty",
}  # fmt: skip
INPUTS = {"z", "c", "points", "real", "grad_names", "grad_norms", "config"}


@dataclass
class Case:
    """One archive, and what these networks compute from its inputs."""

    archive: dict[str, np.ndarray]
    values: dict[str, Tensor]
    norms: dict[str, float]


def apply_rule(network: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not name.endswith("resample_filter"):
                tensor.copy_(rule_tensor(name, tuple(tensor.shape)))


def model_config(archive: dict[str, np.ndarray]) -> ModelConfig:
    """The archive's configuration in our settings."""
    described = json.loads(archive["config"].item())
    config = ModelConfig(resolution=described["res"])
    for group in (config.generator, config.discriminator):
        group.channel_base, group.channel_max = described["channel_base"], described["channel_max"]
    config.discriminator.conv_clamp = None
    for name in (
        "depth_resolution",
        "depth_resolution_importance",
        "ray_start",
        "ray_end",
        "box_warp",
    ):
        setattr(config.rendering, name, described["rendering"][name])
    config.generator.c_scale = described["rendering"]["c_scale"]
    config.rendering.plane_axes = "released" if described["axes"] == "release" else "corrected"
    config.rendering.fine_sampling = "released"
    return config


def gradient_norms(prefix: str, network: nn.Module) -> dict[str, float]:
    """L2 norms; a parameter that the loss does not reach has norm 0."""
    return {
        f"{prefix}/{n}": 0.0 if p.grad is None else p.grad.double().norm().item()
        for n, p in network.named_parameters()
    }


def generate(
    G: Generator, D: Discriminator, archive: dict[str, np.ndarray], values: dict[str, Tensor]
) -> dict[str, float]:
    """Everything up to the generator's loss, and the norms of its gradients."""
    z, c, points = (torch.from_numpy(archive[name]) for name in ("z", "c", "points"))
    ws = G.mapping(z, c)
    values["ws"] = ws[:, 0]
    values["ws_psi0.7_cut3"] = G.mapping(z, c, truncation_psi=0.7, truncation_cutoff=3)
    values["planes_sub"] = G.planes(ws, noise_mode="const").flatten(1, 2)[:, ::7, ::19, ::19]
    origins, directions = sample_rays(*unpack_label(c), 64)
    values["ray_origins_sub"], values["ray_dirs_sub"] = origins[:, ::37], directions[:, ::37]
    values["points_sigma"], values["points_rgb"] = G.query(points, G.planes(ws, noise_mode="const"))
    out = G.synthesis(ws, c, neural_rendering_resolution=64, noise_mode="const", deterministic=True)
    values["image"], values["image_raw"], values["image_depth"] = (
        out.image[:, :, ::2, ::2],
        out.image_raw,
        out.image_depth,
    )
    values["logits"] = D(out.image, out.image_raw, c)
    values["loss_G"] = F.softplus(-values["logits"]).mean()
    values["loss_G"].backward()
    return gradient_norms("G", G)


def penalise(
    D: Discriminator, archive: dict[str, np.ndarray], values: dict[str, Tensor]
) -> dict[str, float]:
    """R1 on a batch of real pictures, and the norms of its gradients."""
    D.zero_grad()
    real, c = torch.from_numpy(archive["real"]).requires_grad_(), torch.from_numpy(archive["c"])
    raw = resize_image(real.detach(), 64).requires_grad_()
    values["real_raw_sub"] = raw[:, :, ::4, ::4]
    values["real_logits"] = D(real, raw, c)
    gradients = torch.autograd.grad(values["real_logits"].sum(), (real, raw), create_graph=True)
    values["r1_penalty"] = torch.stack(
        [gradient.square().sum(dim=(1, 2, 3)) for gradient in gradients]
    ).sum(dim=0)
    (values["r1_penalty"].mean() / 2).backward()
    return gradient_norms("Dr1", D)


@pytest.fixture(scope="module", params=["release", "corrected"])
def case(request: pytest.FixtureRequest) -> Case:
    with np.load(DATA / f"results_ffhq128_{request.param}.npz") as file:
        archive = dict(file)
    config = model_config(archive)
    G, D = Generator(config).eval(), Discriminator(config).eval()
    apply_rule(G)
    apply_rule(D)
    values: dict[str, Tensor] = {}
    norms = generate(G, D, archive, values) | penalise(D, archive, values)
    return Case(archive, values, norms)


def test_nothing_in_the_archive_is_left_out(case: Case) -> None:
    assert set(case.archive) == NAMES | INPUTS
    assert set(case.values) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_values(case: Case, name: str) -> None:
    value, expected = case.values[name].detach().numpy(), case.archive[name]
    assert value.shape == expected.shape
    np.testing.assert_allclose(
        value, expected, rtol=0, atol=VALUE_TOLERANCE * np.abs(expected).max()
    )


def test_gradient_norms(case: Case) -> None:
    expected = dict(
        zip(case.archive["grad_names"].tolist(), case.archive["grad_norms"].tolist(), strict=True)
    )
    assert expected.keys() <= case.norms.keys()
    wrong = {
        name: (case.norms[name], norm)
        for name, norm in expected.items()
        if abs(case.norms[name] - norm) > GRADIENT_TOLERANCE * norm
    }
    assert not wrong


def test_every_gradient_that_is_not_zero_is_in_the_archive(case: Case) -> None:
    assert {name for name, norm in case.norms.items() if norm > 0} <= set(
        case.archive["grad_names"].tolist()
    )


# --------------------------------------------------------------------------------------------------
# Names


def released_names(network: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released FFHQ-512 network; the constant resampling filters are no
    weights and left out.
    """
    lines = [
        line.split(" ", 2)
        for line in (DATA / "parameter_names_ffhq512.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    return {
        name: tuple(json.loads(shape))
        for owner, name, shape in lines
        if owner == network and not name.endswith("resample_filter")
    }


@pytest.mark.parametrize(
    ("network", "kind", "parameters"),
    [("G", Generator, 30_662_136), ("D", Discriminator, 31_359_744)],
)
def test_names_and_shapes_of_the_released_ffhq512_model(
    network: str, kind: type[nn.Module], parameters: int
) -> None:
    with torch.device("meta"):
        module = kind(ModelConfig(resolution=512))
    tensors = [*module.named_parameters(), *module.named_buffers()]
    assert {
        name: tuple(tensor.shape)
        for name, tensor in tensors
        if not name.endswith("resample_filter")
    } == released_names(network)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
