"""Schedules, what the discriminator is shown, losses and regularisers against their formulas."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.references import resize
from tests.tiny import orbit_labels, tiny_config
from training.config.settings import Config, RenderingConfig, TrainingConfig
from training.gan import loss
from training.gan.augment import AugmentPipe
from training.gan.loss import Pictures, Schedule
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator, GeneratorOutput

# --------------------------------------------------------------------------------------------------
# Schedules


def config_of(resolution: int = 64, **training: Any) -> Config:
    config = Config(training=TrainingConfig(**training))
    config.model.rendering.resolution = resolution
    return config


def test_published_schedule_in_numbers() -> None:
    config = config_of(128, resolution_initial=64)
    assert config.training.batch == 32
    expected = {
        0: (64, 10.0, 1.0),
        100_000: (70, 5.0, 0.95),
        200_000: (77, 0.0, 0.9),
        500_000: (96, 0.0, 0.75),
        1_000_000: (128, 0.0, 0.5),
        9_000_000: (128, 0.0, 0.5),
    }
    for images, (resolution, sigma, swap) in expected.items():
        schedule = loss.schedule_at(config, images)
        assert schedule.resolution == resolution
        assert schedule.blur_sigma == pytest.approx(sigma, abs=1e-12)
        assert schedule.swap_probability == pytest.approx(swap, abs=1e-12)


def test_afhq_swaps_more_often() -> None:
    config = config_of(swap_final=0.8)
    assert loss.schedule_at(config, 500_000).swap_probability == pytest.approx(0.9)
    assert loss.schedule_at(config, 2_000_000).swap_probability == pytest.approx(0.8)


def test_blur_fade_scales_with_the_batch_unless_it_is_given() -> None:
    assert loss.schedule_at(config_of(batch=8), 25_000).blur_sigma == pytest.approx(5)
    assert loss.schedule_at(config_of(batch=8), 50_000).blur_sigma == 0
    assert loss.schedule_at(config_of(batch=64), 200_000).blur_sigma == pytest.approx(5)
    assert loss.schedule_at(
        config_of(batch=8, blur_fade_kimg=200), 50_000
    ).blur_sigma == pytest.approx(7.5)


def test_a_fade_of_no_length_is_over_at_once() -> None:
    assert loss.fade(3, 7, 0, 0) == 7
    assert (
        loss.schedule_at(
            config_of(128, resolution_initial=64, resolution_fade_kimg=0), 0
        ).resolution
        == 128
    )


def test_rendering_resolution_is_rounded_to_the_nearest_pixel() -> None:
    config = config_of(128, resolution_initial=64)
    assert [
        loss.schedule_at(config, images).resolution for images in (7_800, 7_900, 23_400, 23_500)
    ] == [64, 65, 65, 66]


def test_average_has_the_published_half_life() -> None:
    decay = loss.ema_decay(TrainingConfig(), 5_000_000)
    assert decay == pytest.approx(0.5 ** (32 / 10_000))
    assert decay ** (10_000 / 32) == pytest.approx(0.5)
    assert loss.ema_decay(TrainingConfig(batch=8), 5_000_000) == pytest.approx(0.5 ** (8 / 2_500))
    assert loss.ema_decay(TrainingConfig(batch=8, ema_kimg=1.0), 5_000_000) == pytest.approx(
        0.5 ** (8 / 1_000)
    )


def test_average_ramps_up_with_the_images_seen() -> None:
    config = TrainingConfig()
    assert loss.ema_decay(config, 20_000) == pytest.approx(0.5 ** (32 / 1_000))
    assert loss.ema_decay(config, 200_000) == pytest.approx(0.5 ** (32 / 10_000))
    assert (
        loss.ema_decay(config, 100_000)
        < loss.ema_decay(config, 200_000)
        == loss.ema_decay(config, 300_000)
    )
    assert loss.ema_decay(config, 0) == 0
    assert loss.ema_decay(TrainingConfig(ema_rampup=None), 32) == pytest.approx(
        0.5 ** (32 / 10_000)
    )


def test_learning_rate_and_penalty_fall_along_a_cosine() -> None:
    config = config_of(kimg=100, lr_final=0.1, gamma_final=0.5)
    expected = {0: (1, 1), 50_000: (0.55, 0.75), 100_000: (0.1, 0.5), 300_000: (0.1, 0.5)}
    for images, factors in expected.items():
        schedule = loss.schedule_at(config, images)
        assert (schedule.learning_rate, schedule.penalty) == pytest.approx(factors)
    quarter = loss.schedule_at(config, 25_000).learning_rate
    assert quarter == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    config.training.schedule_kimg = 50
    assert loss.schedule_at(config, 25_000).learning_rate == pytest.approx(0.55)


def test_without_a_schedule_the_factors_are_exactly_one() -> None:
    for images in (0, 1, 12_345_678, 25_000_000):
        schedule = loss.schedule_at(config_of(), images)
        assert schedule.learning_rate == schedule.penalty == 1


# --------------------------------------------------------------------------------------------------
# Pose swapping


def test_without_swapping_every_sample_keeps_its_camera() -> None:
    c = orbit_labels(5)
    assert torch.equal(loss.swap_cameras(c, 0.0), c)


def test_certain_swapping_gives_everybody_the_camera_of_one_neighbour() -> None:
    c = orbit_labels(5)
    before = c.clone()
    swapped = loss.swap_cameras(c, 1.0)
    givers = [next(j for j in range(5) if torch.equal(c[j], row)) for row in swapped]
    steps = {(giver - taker) % 5 for taker, giver in enumerate(givers)}
    assert steps in ({1}, {4})
    assert torch.equal(c, before)


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.8])
def test_share_of_swapped_cameras(probability: float) -> None:
    torch.manual_seed(0)
    count = 20_000
    c = torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 25)
    swapped = loss.swap_cameras(c, probability)
    assert torch.equal(swapped, swapped[:, :1].expand(-1, 25))  # whole cameras, not single numbers
    is_own = swapped[:, 0] == c[:, 0]
    is_neighbour = (swapped[:, 0] - c[:, 0]).abs().remainder(count - 2) == 1
    assert bool((is_own ^ is_neighbour).all())
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(float(is_neighbour.float().mean()) - probability) < 5 * deviation


class RecordingGenerator:
    """Notes what its parts are asked."""

    def __init__(self, box_warp: float = 1.0) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self.rendering = RenderingConfig(box_warp=box_warp)

    def mapping(self, z: Tensor, c: Tensor, **options: Any) -> Tensor:
        self.calls["mapping"] = {"z": z, "c": c, **options}
        return torch.zeros(len(z), 2, 8)

    def synthesis(self, ws: Tensor, c: Tensor, **options: Any) -> str:
        self.calls["synthesis"] = {"ws": ws, "c": c, **options}
        return "fakes"

    def planes(self, ws: Tensor, **options: Any) -> str:
        self.calls["planes"] = {"ws": ws, **options}
        return "planes"

    def query_density(self, points: Tensor, planes: str) -> Tensor:
        self.calls["query_density"] = {"points": points, "planes": planes}
        return points @ DENSITY_SLOPE[:, None]


DENSITY_SLOPE = torch.tensor([3.0, -1.0, 2.0])


def test_swapping_conditions_the_mapping_but_not_the_rendering() -> None:
    recorder, c, z = RecordingGenerator(), orbit_labels(4), torch.randn(4, 8)
    schedule = Schedule(resolution=12, blur_sigma=0.0, swap_probability=1.0)
    assert (
        cast(Any, loss.generate(cast(Generator, recorder), z, c, schedule, update_w_avg=True))
        == "fakes"
    )
    mapping, synthesis = recorder.calls["mapping"], recorder.calls["synthesis"]
    assert torch.equal(mapping["c"], c.roll(1, 0))
    assert mapping["update_w_avg"] is True
    assert torch.equal(synthesis["c"], c)
    assert (
        synthesis["neural_rendering_resolution"],
        synthesis["noise_mode"],
        synthesis["deterministic"],
    ) == (12, "random", False)


# --------------------------------------------------------------------------------------------------
# Blur


@pytest.mark.parametrize(("sigma", "radius"), [(10.0, 30), (2.0, 6), (1.2, 3), (0.5, 1), (0.34, 1)])
def test_blur_weights(sigma: float, radius: int) -> None:
    weights = [2.0 ** -((x / sigma) ** 2) for x in range(-radius, radius + 1)]
    kernel = loss.blur_kernel(sigma)
    assert kernel is not None
    assert len(kernel) == 2 * radius + 1
    np.testing.assert_allclose(kernel.numpy(), np.array(weights) / sum(weights), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.33])
def test_a_blur_of_less_than_a_pixel_is_none(sigma: float) -> None:
    images = torch.randn(1, 3, 8, 8)
    assert loss.blur_kernel(sigma) is None
    assert torch.equal(loss.blur(images, sigma), images)


def test_blur_sums_neighbours_with_zeros_outside() -> None:
    sigma, size = 1.2, 9
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    weights = {x: 2.0 ** -((x / sigma) ** 2) for x in range(-3, 4)}
    total = sum(weights.values())
    expected = np.zeros(images.shape)
    for i in range(size):
        for j in range(size):
            for dy, wy in weights.items():
                for dx, wx in weights.items():
                    if 0 <= i + dy < size and 0 <= j + dx < size:
                        expected[:, :, i, j] += (
                            wy * wx / total**2 * images[:, :, i + dy, j + dx].numpy()
                        )
    np.testing.assert_allclose(loss.blur(images, sigma).numpy(), expected, atol=1e-6)


def test_a_blur_wider_than_the_picture_still_works() -> None:
    blurred = loss.blur(torch.ones(1, 1, 8, 8), 10.0)
    assert blurred.shape == (1, 1, 8, 8)
    assert 0 < float(blurred.min()) < float(blurred.max()) < 1  # zeros outside


# --------------------------------------------------------------------------------------------------
# What the discriminator sees


def make_fakes(count: int = 2) -> GeneratorOutput:
    empty = torch.zeros(count, 1, 8, 8)
    return GeneratorOutput(torch.randn(count, 3, 32, 32), torch.randn(count, 3, 8, 8), empty, empty)


def test_real_pictures_are_both_blurred_and_the_raw_one_is_shrunk_first() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    image, raw = loss.real_pictures(
        images, Schedule(resolution=6, blur_sigma=0.8, swap_probability=0)
    )
    shrunk = torch.from_numpy(resize(images.double().numpy(), 6, antialias=True))
    torch.testing.assert_close(image, loss.blur(images, 0.8))
    torch.testing.assert_close(raw, loss.blur(shrunk.float(), 0.8), rtol=0, atol=1e-5)


def test_of_fakes_only_the_final_picture_is_blurred() -> None:
    fakes = make_fakes()
    image, raw = loss.fake_pictures(
        fakes, Schedule(resolution=8, blur_sigma=2.0, swap_probability=0)
    )
    assert torch.equal(raw, fakes.image_raw)
    torch.testing.assert_close(image, loss.blur(fakes.image, 2.0))
    assert not torch.allclose(image, fakes.image, atol=0.1)


def smooth_images(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4) * 2 - 1
    return F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True)


def test_no_augmentation_at_probability_zero() -> None:
    pictures = Pictures(smooth_images(2), torch.randn(2, 3, 8, 8))
    shown = loss.augment_pictures(AugmentPipe(p=0.0), pictures)
    assert torch.equal(shown.image, pictures.image)
    assert torch.equal(shown.image_raw, pictures.image_raw)


def test_both_pictures_of_a_sample_go_through_one_transform() -> None:
    torch.manual_seed(0)
    images = smooth_images(4)
    shown = loss.augment_pictures(AugmentPipe(p=1.0), Pictures(images, images.clone()))
    torch.testing.assert_close(shown.image, shown.image_raw)
    assert bool(((shown.image - images).abs().amax(dim=(1, 2, 3)) > 0.3).all())


def test_raw_is_augmented_at_full_size_and_shrunk_back() -> None:
    torch.manual_seed(0)
    images = smooth_images(4)
    raw = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    shown = loss.augment_pictures(AugmentPipe(p=1.0), Pictures(images, raw))
    assert shown.image.shape == images.shape
    assert shown.image_raw.shape == raw.shape
    shrunk = F.interpolate(shown.image, size=(16, 16), mode="bilinear", antialias=True)
    same = (shown.image_raw - shrunk).abs().mean()
    others = (shown.image_raw - shrunk.roll(1, 0)).abs().mean()
    assert same < 0.15 * others


# --------------------------------------------------------------------------------------------------
# Losses


def test_logistic_losses() -> None:
    x = torch.linspace(-8, 8, 41, dtype=torch.float64, requires_grad=True)
    sigmoid = 1 / (1 + (-x.detach()).exp())
    real, fake = loss.loss_real(x), loss.loss_fake(x)
    torch.testing.assert_close(real.detach(), -sigmoid.log())
    torch.testing.assert_close(fake.detach(), -(1 - sigmoid).log())
    (slope,) = torch.autograd.grad(real.sum(), x)
    torch.testing.assert_close(slope, sigmoid - 1)
    (slope,) = torch.autograd.grad(fake.sum(), x)
    torch.testing.assert_close(slope, sigmoid)


def judged(logits: Tensor) -> loss.Judged:
    return loss.Judged(loss.Pictures(torch.zeros(0), torch.zeros(0)), logits)


def test_the_table_of_losses_against_the_formulas() -> None:
    fake, real = torch.randn(2, 50, 1, dtype=torch.float64) * 4

    def log_sigmoid(x: Tensor) -> Tensor:
        return (1 / (1 + (-x).exp())).log()

    expected = {
        "logistic": (-log_sigmoid(fake), -log_sigmoid(-fake) - log_sigmoid(real)),
        "relativistic": (-log_sigmoid(fake - real), -log_sigmoid(real - fake)),
    }
    assert set(loss.GAN_LOSSES) == set(expected)
    for name, (of_generator, of_discriminator) in expected.items():
        found = loss.GAN_LOSSES[name]
        torch.testing.assert_close(found.generator(judged(fake), judged(real)), of_generator)
        torch.testing.assert_close(
            found.discriminator(judged(fake), judged(real)), of_discriminator
        )
        assert found.is_paired == (name == "relativistic")
    assert loss.GAN_LOSSES["logistic"].generator(judged(fake), None) is not None


def test_logistic_losses_stay_finite() -> None:
    x = torch.tensor([-1e4, 1e4])
    assert loss.loss_real(x).tolist() == [1e4, 0]
    assert loss.loss_fake(x).tolist() == [0, 1e4]


class LinearCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.randn(3, 8, 8).double(), torch.randn(3, 4, 4).double()

    def forward(self, image: Tensor, raw: Tensor) -> Tensor:
        return ((image * self.a).sum((1, 2, 3)) + (raw * self.b).sum((1, 2, 3)))[:, None]


def test_r1_of_a_linear_critic_is_the_squared_slope_of_both_pictures() -> None:
    critic = LinearCritic()
    pictures = Pictures(
        *(torch.randn(5, 3, size, size).double().requires_grad_() for size in (8, 4))
    )
    penalty = loss.r1_penalty(critic(*pictures), pictures)
    expected = critic.a.square().sum() + critic.b.square().sum()
    torch.testing.assert_close(penalty, expected.expand(5))


class CurvedCritic(nn.Module):
    """A small critic whose slopes depend on the pictures and on all its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.raw = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.out = nn.Linear(4, 1)

    def forward(self, image: Tensor, raw: Tensor) -> Tensor:
        x, y = (
            torch.tanh(conv(value)).mean((2, 3))
            for conv, value in ((self.image, image), (self.raw, raw))
        )
        return self.out(torch.tanh(3 * x * y + x))


def test_r1_sample_by_sample_in_float64() -> None:
    torch.manual_seed(0)
    critic = CurvedCritic().double()
    pictures = Pictures(
        *(torch.randn(4, 3, size, size).double().requires_grad_() for size in (8, 4))
    )
    penalty = loss.r1_penalty(critic(*pictures), pictures)
    for i in range(4):
        image, raw = (value[i : i + 1].detach().clone().requires_grad_() for value in pictures)
        slopes = torch.autograd.grad(critic(image, raw)[0, 0], (image, raw))
        assert float(penalty[i].detach()) == pytest.approx(
            sum(float(s.square().sum()) for s in slopes), rel=1e-9
        )


def test_r1_of_the_discriminator_sees_both_pictures() -> None:
    torch.manual_seed(0)
    D = Discriminator(tiny_config("discriminator.mbstd_group_size=1").model)
    pictures = Pictures(*(torch.randn(3, 3, size, size).requires_grad_() for size in (32, 8)))
    c = orbit_labels(3)
    penalty = loss.r1_penalty(D(*pictures, c), pictures)
    for i in range(3):
        image, raw = (value[i : i + 1].detach().clone().requires_grad_() for value in pictures)
        slopes = torch.autograd.grad(D(image, raw, c[i : i + 1])[0, 0], (image, raw))
        assert all(float(s.abs().sum()) > 0 for s in slopes)
        assert float(penalty[i].detach()) == pytest.approx(
            sum(float(s.square().sum()) for s in slopes), rel=1e-4
        )


def test_r1_has_the_gradient_that_makes_slopes_smaller() -> None:
    torch.manual_seed(0)
    critic = CurvedCritic().double()
    pictures = Pictures(
        *(torch.randn(2, 3, size, size).double().requires_grad_() for size in (8, 4))
    )

    def mean_penalty() -> Tensor:
        return loss.r1_penalty(critic(*pictures), pictures).mean()

    for weight in (critic.image.weight, critic.raw.weight, critic.out.weight):
        (slope,) = torch.autograd.grad(mean_penalty(), weight)
        step, direction, values = 1e-5, torch.randn_like(weight), []
        for sign in (1, -2):
            with torch.no_grad():
                weight += sign * step * direction
            values.append(float(mean_penalty().detach()))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            float((slope * direction).sum()), rel=1e-5
        )


def test_finite_difference_of_a_linear_critic_is_its_slope_along_the_move() -> None:
    torch.manual_seed(0)
    critic, seen = LinearCritic(), list[Pictures]()
    pictures = Pictures(*(torch.randn(5, 3, size, size).double() for size in (8, 4)))

    def judge(shown: Pictures) -> Tensor:
        seen.append(shown)
        return critic(*shown)

    penalty = loss.squared_difference(judge, pictures, 0.01)
    (moved,) = (shown for shown in seen if not torch.equal(shown.image, pictures.image))
    direction = [(m - p) / 0.01 for m, p in zip(moved, pictures, strict=True)]
    slopes = (direction[0] * critic.a).sum((1, 2, 3)) + (direction[1] * critic.b).sum((1, 2, 3))
    torch.testing.assert_close(penalty, slopes.square())
    for part in direction:
        assert float(part.std()) == pytest.approx(1, abs=0.15)


def test_finite_difference_is_r1_in_the_mean() -> None:
    torch.manual_seed(1)
    critic = CurvedCritic().double()
    one = Pictures(*(torch.randn(1, 3, size, size).double() for size in (8, 4)))
    many = Pictures(*(value.expand(20_000, -1, -1, -1) for value in one))
    exact = TrainingConfig()
    estimate = TrainingConfig(penalty="finite_difference", penalty_step=1e-4)

    def judge(pictures: Pictures) -> Tensor:
        return critic(*pictures)

    slope = loss.slope_penalty(judge, one, exact)
    mean = loss.slope_penalty(judge, many, estimate).mean()
    # the square of a normal number has a deviation of sqrt(2)
    assert float(mean.detach()) == pytest.approx(float(slope.detach()), rel=5 * 2**0.5 / 141)


def test_finite_difference_needs_first_derivatives_only() -> None:
    critic = CurvedCritic().double()
    pictures = Pictures(*(torch.randn(2, 3, size, size).double() for size in (8, 4)))

    def penalty(weight: Tensor) -> Tensor:
        torch.manual_seed(0)
        judge = functools.partial(torch.func.functional_call, critic, {"out.weight": weight})
        return loss.squared_difference(lambda shown: judge(tuple(shown)), pictures, 0.01)

    assert torch.autograd.gradcheck(penalty, critic.out.weight)


def test_density_regularisation_formula() -> None:
    torch.manual_seed(0)
    recorder, z, c = RecordingGenerator(2.5), torch.randn(3, 8), orbit_labels(3)
    schedule = Schedule(resolution=8, blur_sigma=0.0, swap_probability=1.0)
    distance, count = 0.004, 20_000
    options = TrainingConfig(density_reg_points=count, density_reg_distance=distance)
    value = loss.density_regularisation(cast(Generator, recorder), z, c, schedule, options)
    points = recorder.calls["query_density"]["points"].double() / 2.5  # in box sides
    assert points.shape == (3, 2 * count, 3)
    here, there = points[:, :count], points[:, count:]
    assert float(here.abs().max()) <= 1
    assert float(here.mean()) == pytest.approx(0, abs=0.01)
    assert float(here.square().mean()) == pytest.approx(1 / 3, abs=0.005)  # uniform in [-1, 1]
    offsets = (there - here) / distance
    assert float(offsets.mean()) == pytest.approx(0, abs=0.02)
    assert float(offsets.square().mean()) == pytest.approx(1, abs=0.02)
    assert float(offsets.pow(4).mean()) == pytest.approx(3, abs=0.15)  # normal
    slope = DENSITY_SLOPE.double()
    change = float(((here - there) @ slope).abs().mean()) * 2.5
    assert float(value) == pytest.approx(change, rel=1e-3)
    assert change == pytest.approx(
        2.5 * distance * float(slope.norm()) * math.sqrt(2 / math.pi), rel=0.02
    )
    assert torch.equal(recorder.calls["mapping"]["c"], c.roll(1, 0))
    assert not recorder.calls["mapping"].get("update_w_avg")
    assert recorder.calls["planes"]["noise_mode"] == "random"


def test_density_regularisation_reaches_planes_and_decoder() -> None:
    torch.manual_seed(0)
    G = Generator(tiny_config().model)
    value = loss.density_regularisation(
        G,
        torch.randn(2, 8),
        orbit_labels(2),
        Schedule(8, 0.0, 0.0),
        TrainingConfig(density_reg_points=100, density_reg_distance=0.1),
    )
    value.backward()
    reached = {
        name.split(".")[0]
        for name, p in G.named_parameters()
        if p.grad is not None and bool(p.grad.abs().sum() > 0)
    }
    assert reached == {"backbone", "decoder"}
