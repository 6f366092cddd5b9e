"""Parts of inversions against independent formulas, and that each of them does what it is for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from open_eg3d import label_pose
from tests.tiny import differing, orbit_labels, tiny_config
from training.cameras import CameraSummary, cameras_of
from training.inversion.latents import (
    LatentSettings,
    LatentStatistics,
    fit_latents,
    paced,
    rate,
)
from training.inversion.objective import Objective, gradient_distance
from training.inversion.pose import CameraOffsets, angle_between, describe_pose
from training.inversion.pti import BANK, TuningSettings, tune_generator
from training.networks.generator import Generator, GeneratorOutput


def make_generator() -> Generator:
    """Random weights, frozen, with densities that make a surface."""
    torch.manual_seed(0)
    generator = Generator(tiny_config().model).eval().requires_grad_(False)
    generator.cameras = CameraSummary.from_labels(orbit_labels(9)).to_dict()
    generator.rendering.density_gain = 10.0
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator()


@pytest.fixture(scope="module")
def statistics(generator: Generator) -> LatentStatistics:
    return LatentStatistics.of(generator)


def random_pictures(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def output(images: torch.Tensor) -> GeneratorOutput:
    return GeneratorOutput(images, images, images[:, :1], images[:, :1])


# --------------------------------------------------------------------------------------------------
# Objective


def test_psnr_is_that_of_another_library() -> None:
    first, second = random_pictures(), random_pictures()
    found = Objective(first).psnr(second)
    for a, b, value in zip(first.double(), second.double(), found, strict=True):
        expected = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2)
        assert float(value) == pytest.approx(expected, abs=1e-4)


def test_what_is_the_same_is_at_no_distance() -> None:
    images = random_pictures()
    assert Objective(images)(output(images)).abs().max() == 0
    assert (Objective(images)(output(random_pictures())) > 0.1).all()


def test_a_gradient_distance_sees_edges_and_no_brightness() -> None:
    images = random_pictures()
    torch.testing.assert_close(
        gradient_distance(images, images + 0.3), torch.zeros(2), atol=1e-5, rtol=0
    )
    plain = torch.zeros(1, 3, 8, 8)
    step = plain.clone()
    step[..., 4:] = 1.0  # one of 7 differences is 1; at 1/2 one of 3, at 1/4 the only one
    assert float(gradient_distance(plain, step)) == pytest.approx(1 / 7 + 1 / 3 + 1)


def test_pixels_outside_of_the_mask_count_nothing() -> None:
    images, masks = random_pictures(), torch.zeros(2, 1, 32, 32)
    masks[..., :16] = 1
    objective = Objective(images, masks)
    rendered = random_pictures().requires_grad_()
    objective.masked(rendered).square().sum().backward()
    loss = torch.autograd.grad(objective(output(rendered)).sum(), rendered)[0]
    assert loss[..., 16:].abs().max() == 0
    assert loss[..., :16].abs().min() > 0
    half = Objective(images[..., :16, :16])
    assert objective.psnr(
        torch.where(masks > 0, images + 0.1, images - 1).clamp(-1, 1)
    ).tolist() == (
        pytest.approx(
            [
                float(-10 * torch.log10(((i + 0.1).clamp(-1, 1) - i).square().mean() / 4))
                for i in images[..., :16]
            ],
            abs=1e-3,
        )
    )
    assert len(half) == len(objective) == 2
    assert len(objective[1]) == 1


# --------------------------------------------------------------------------------------------------
# Cameras

ORBIT = CameraSummary(2.7, (0.1, -0.2, 0.3), center=(0.1, -0.2, 0.3))


def test_no_offsets_are_the_cameras_themselves() -> None:
    labels = orbit_labels(3)
    torch.testing.assert_close(CameraOffsets(labels, ORBIT)(), labels)


def test_a_turn_goes_along_the_orbit() -> None:
    offsets = CameraOffsets(ORBIT.label(0.0, 0.0)[None], ORBIT)
    with torch.no_grad():
        offsets.turn[0, 1] = -0.4  # around the camera's down axis
    torch.testing.assert_close(offsets()[0], ORBIT.label(0.4, 0.0), atol=1e-4, rtol=0)
    with torch.no_grad():
        offsets.turn.zero_()
        offsets.turn[0, 0] = -0.3
    torch.testing.assert_close(offsets()[0], ORBIT.label(0.0, 0.3), atol=1e-4, rtol=0)


def test_turns_of_any_size_are_rigid_motions_around_the_pivot() -> None:
    offsets = CameraOffsets(orbit_labels(5), ORBIT, has_focal=True)
    with torch.no_grad():
        offsets.turn.normal_()
        offsets.log_focal.fill_(0.1)
    label, start = offsets(), orbit_labels(5)
    rotation = label[:, :16].unflatten(1, (4, 4))[:, :3, :3].double()
    eye = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=1e-4, rtol=0)
    pivot = torch.tensor(ORBIT.pivot)
    away = [c[:, [3, 7, 11]] - pivot for c in (label, start)]
    torch.testing.assert_close(away[0].norm(dim=1), away[1].norm(dim=1))
    assert label[:, 16].tolist() == pytest.approx((start[:, 16] * math.exp(0.1)).tolist())


def test_a_described_pose_is_that_of_the_orbit() -> None:
    label = ORBIT.label(math.radians(25.0), math.radians(-12.0))
    found, known = describe_pose(label, ORBIT), label_pose(label, ORBIT.center)
    assert found["yaw"] == pytest.approx(float(known.yaw_degrees), abs=2e-3)
    assert found["pitch"] == pytest.approx(-12.0, abs=2e-3)
    assert found["roll"] == pytest.approx(0.0, abs=1e-3)
    assert found["distance"] == pytest.approx(2.7, abs=1e-4)
    assert found["shift"] == pytest.approx([0.0, 0.0], abs=1e-4)
    offsets = CameraOffsets(label[None], ORBIT)
    with torch.no_grad():
        offsets.turn[0, 2] = math.radians(5)
        offsets.shift[0, 2] = 0.1
    turned = describe_pose(offsets()[0], ORBIT)
    assert turned["roll"] == pytest.approx(5.0, abs=2e-3)
    assert turned["distance"] == pytest.approx(2.7 * 0.9, abs=1e-4)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_a_pose_is_described_in_any_unit(unit: float) -> None:
    cameras = dataclasses.replace(
        ORBIT, radius=2.7 * unit, pivot=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0)
    )
    assert describe_pose(cameras.label(0.3, 0.1), cameras)["distance"] == pytest.approx(2.7 * unit)


def test_an_angle_between_cameras() -> None:
    first, second = ORBIT.label(0.0, 0.0), ORBIT.label(math.radians(33.0), 0.0)
    assert angle_between(first, second, ORBIT) == pytest.approx(33.0, abs=1e-3)


# --------------------------------------------------------------------------------------------------
# Latents


def test_statistics_are_those_of_mapped_latents(
    generator: Generator, statistics: LatentStatistics
) -> None:
    c = cameras_of(generator).frontal_label().expand(4000, -1)
    w = generator.mapping(torch.randn(4000, generator.z_dim), c)[:, :1]
    np.testing.assert_allclose(statistics.mean, w.mean((0, 1)), atol=0.1 * statistics.deviation)
    deviation = float(w[:, 0].double().var(0).mean().sqrt())
    assert statistics.deviation == pytest.approx(deviation, rel=0.05)
    distances = torch.stack([statistics.beyond(one[None]) for one in w[:500]])
    assert distances.mean() < 1  # beyond the usual by little
    far = statistics.mean + 10 * (w[:1] - statistics.mean)
    assert statistics.beyond(far) > 20 * distances.mean()
    assert statistics.beyond(statistics.mean[None, None]) == 0


def test_steps_end_by_number_or_by_the_clock() -> None:
    assert list(paced(4, None)) == [0, 0.25, 0.5, 0.75]
    assert list(paced(1_000_000, 0.0)) == [0]
    assert len(list(paced(10**9, 0.05))) < 10**7
    rates = [rate(done) for done in np.linspace(0, 1, 101)[:-1]]
    assert max(rates) == pytest.approx(1, abs=1e-6)
    assert rates[0] < 0.1
    assert rates[-1] < 0.01
    assert min(rates) > 0


def test_latents_of_a_picture_of_its_own_are_found(
    generator: Generator, statistics: LatentStatistics
) -> None:
    labels = orbit_labels(2)
    c = cameras_of(generator).frontal_label()[None]
    ws = generator.mapping(torch.randn(1, generator.z_dim), c)
    objective = Objective(generator.synthesis(ws.expand(2, -1, -1), labels).image)
    settings = LatentSettings(steps=150, lr=0.05)
    losses: list[float] = []

    def tell(_: str, __: float, loss: float) -> None:
        losses.append(loss)

    start = statistics.mean[None, None]
    fit = fit_latents(generator, objective, statistics, start, labels, settings, on_step=tell)
    assert len(losses) == 150
    assert fit.loss < 0.3 * losses[0]
    assert fit.ws.shape == ws.shape
    assert torch.equal(fit.ws[:, :1].expand_as(ws), fit.ws)  # W: one latent for all layers
    assert torch.equal(fit.labels, labels)


def test_a_camera_that_is_off_comes_back(
    generator: Generator, statistics: LatentStatistics
) -> None:
    cameras = cameras_of(generator)
    ws = statistics.mean.expand(1, generator.num_ws, -1)
    true = cameras.label(0.1, 0.0)[None]
    objective = Objective(generator.synthesis(ws, true).image)
    off = cameras.label(0.1 + math.radians(10), 0.0)[None]
    settings = LatentSettings(steps=120, lr=1e-6, noise=0.0)
    start = statistics.mean[None, None]
    fit = fit_latents(generator, objective, statistics, start, off, settings, moves_cameras=True)
    assert angle_between(off[0], true[0], cameras) == pytest.approx(10, abs=0.1)
    assert angle_between(fit.labels[0], true[0], cameras) < 2


# --------------------------------------------------------------------------------------------------
# Tuned weights


def tuned_psnr(
    generator: Generator, statistics: LatentStatistics, settings: TuningSettings
) -> tuple[Generator, float, float]:
    """A generator tuned to a picture, and its PSNR before and after."""
    torch.manual_seed(1)
    c = orbit_labels(1)
    objective = Objective(random_pictures(1, 4).repeat_interleave(8, 2).repeat_interleave(8, 3))
    ws = statistics.mean.expand(1, generator.num_ws, -1)
    tuned = tune_generator(generator, objective, statistics, ws, c, settings)
    before, after = (objective.psnr(one.synthesis(ws, c).image) for one in (generator, tuned))
    return tuned, float(before), float(after)


def test_tuning_comes_nearer_and_leaves_the_generator_alone(statistics: LatentStatistics) -> None:
    generator = make_generator()
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    settings = TuningSettings(steps=40, lr=5e-3, geometry=0.0, pictures=0.0, locality=0.0)
    tuned, before, after = tuned_psnr(generator, statistics, settings)
    assert after > before + 1
    assert differing(state, dict(generator.state_dict())) == []
    changed = differing(state, dict(tuned.state_dict()))
    assert changed
    assert not [name for name in changed if ".mapping." in name]
    assert not any(parameter.requires_grad for parameter in tuned.parameters())


def test_geometry_and_locality_hold_the_generator_in_place(statistics: LatentStatistics) -> None:
    """Depth from other cameras, and pictures of other latents, change less with their terms."""
    generator = make_generator()
    cameras = cameras_of(generator).grid(*BANK)
    mean = statistics.mean.expand(1, generator.num_ws, -1)
    near = mean + 0.3 * torch.randn(1, 1, mean.shape[2], generator=torch.Generator().manual_seed(3))

    def changes(**terms: float) -> tuple[float, float]:
        none = {"geometry": 0.0, "pictures": 0.0, "locality": 0.0}
        settings = TuningSettings(steps=40, lr=5e-3, locality_interval=1, **{**none, **terms})
        tuned, _, _ = tuned_psnr(generator, statistics, settings)
        depths: list[torch.Tensor] = []
        pictures: list[torch.Tensor] = []
        for ws, values in ((mean, depths), (near, pictures)):
            was, out = (one.render(one.planes(ws), ws, cameras) for one in (generator, tuned))
            values.append((was.image_depth * was.alpha - out.image_depth * was.alpha).abs().mean())
            values.append((was.image - out.image).abs().mean())
        return float(depths[0]), float(pictures[1])

    free = changes()
    assert changes(geometry=30.0)[0] < 0.7 * free[0]
    assert changes(locality=5.0)[1] < 0.9 * free[1]


def test_the_same_seed_is_the_same_result(
    generator: Generator, statistics: LatentStatistics
) -> None:
    settings = TuningSettings(steps=3)
    first, second = (tuned_psnr(generator, statistics, settings)[0] for _ in range(2))
    assert differing(dict(first.state_dict()), dict(second.state_dict())) == []
    assert dataclasses.asdict(settings)["steps"] == 3
