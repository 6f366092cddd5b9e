"""Fakes by number, and path lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.consistency import view_consistency
from metrics.evaluate import evaluate
from metrics.fid3d import OTHER_CAMERA_STREAM
from metrics.geometry import view_angle
from metrics.options import MetricOptions
from metrics.ppl import path_length, path_lengths, trimmed_mean
from metrics.processes import ALONE
from metrics.reals import RealImages
from metrics.sampling import NEAR_ANGLE, to_pixels
from tests.metrics.scenes import ORBIT, Linear, Scene, sampler_of, squared
from tests.metrics.test_evaluate import mean_colour_detector
from training.cameras import orbit_angles, unpack_label

# --------------------------------------------------------------------------------------------------
# The sampling function


def test_a_fake_is_the_same_in_any_batch():
    sampler = sampler_of(Scene(), seed=3)
    together = sampler(0, 7)
    assert together.dtype == torch.uint8
    assert together.shape == (7, 3, 64, 64)
    for start, count in ((0, 1), (2, 3), (6, 1)):
        assert torch.equal(sampler(start, count), together[start : start + count])
    assert torch.equal(sampler_of(Scene(), seed=5)(0, 2), together[2:4])
    assert not torch.equal(together[0], together[1])


def test_the_latent_is_that_of_the_seed():
    z = sampler_of(Scene(), seed=40).latents(2, 2)
    np.testing.assert_array_equal(z[1:], np.random.RandomState(43).randn(1, 4).astype(np.float32))


def test_cameras_follow_their_distribution_and_not_the_latents():
    sampler = sampler_of(Scene())
    c = sampler.cameras(0, 400)
    yaw, pitch, radius = orbit_angles(unpack_label(c)[0])
    assert torch.allclose(radius, torch.tensor(ORBIT))
    assert float(yaw.std()) == pytest.approx(np.radians(60) / 12**0.5, rel=0.1)
    assert (
        abs(float(torch.corrcoef(torch.stack([yaw, sampler.latents(0, 400)[:, 0]]))[0, 1])) < 0.15
    )
    assert abs(float(torch.corrcoef(torch.stack([yaw, pitch]))[0, 1])) < 0.15


def test_second_cameras_are_others_and_near():
    sampler = sampler_of(Scene())
    angles = [
        view_angle(a, b)
        for a, b in zip(sampler.cameras(0, 50), sampler.second_cameras(0, 50), strict=True)
    ]
    assert min(angles) > 0
    assert max(angles) <= NEAR_ANGLE


def test_conditioning_is_the_own_camera_or_a_fixed_one():
    seen: list[Tensor] = []

    class Noting(Scene):
        def mapping(self, z: Tensor, c: Tensor, *rest: Any) -> Tensor:
            seen.append(c)
            return super().mapping(z, c, *rest)

    own, fixed = sampler_of(Noting()), sampler_of(Noting(), conditioning=torch.arange(25.0))
    own(0, 2), fixed(0, 2)
    assert torch.equal(seen[0], own.cameras(0, 2))
    assert torch.equal(seen[1], torch.arange(25.0).expand(2, 25))
    assert (own.protocol["conditioning"], fixed.protocol["conditioning"]) == ("own camera", "fixed")


def test_noise_while_rendering_belongs_to_the_fake_and_leaves_other_randomness_alone():
    class Noisy(Scene):
        def render(self, *arguments: Any, **options: Any) -> Any:
            rendered = super().render(*arguments, **options)
            return rendered._replace(image=rendered.image + 0.2 * torch.randn(rendered.image.shape))

    sampler = sampler_of(Noisy(), has_random_noise=True)
    elsewhere = sampler.pictures(0, 3, OTHER_CAMERA_STREAM)
    assert torch.equal(sampler.pictures(1, 2, OTHER_CAMERA_STREAM), elsewhere[1:])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    together = sampler(0, 3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(sampler(1, 2), together[1:])
    assert view_consistency(sampler, 3, 1, ALONE) == pytest.approx(
        view_consistency(sampler, 3, 3, ALONE)
    )


def test_pixels_are_rounded_and_clamped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, float("nan"), 100 / 127.5 - 1])
    assert to_pixels(values).tolist() == [0, 0, 128, 255, 255, 0, 100]


# --------------------------------------------------------------------------------------------------
# Path length


def test_path_length_of_a_linear_generator():
    """Each step changes the picture by EPSILON times the distance of both latents, so the length is
    that distance squared.
    """
    sampler = sampler_of(Linear())
    first, second = (
        sampler.latents(0, 40).double()[:, 0],
        sampler.second_latents(0, 40).double()[:, 0],
    )
    expected = (second - first).square()
    torch.testing.assert_close(
        path_lengths(sampler, squared, 0, 40).double(), expected, rtol=0.02, atol=1e-4
    )
    found = [path_length(sampler, squared, 40, batch, ALONE) for batch in (7, 40)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0] == pytest.approx(float(expected.mean()), rel=0.02)


def test_extreme_path_lengths_are_left_out():
    lengths = np.concatenate([[-1e9], np.full(198, 5.0), [1e9]])
    assert trimmed_mean(lengths) == 5
    assert trimmed_mean(np.arange(1001.0)) == pytest.approx(500)


# --------------------------------------------------------------------------------------------------
# Seen from another camera


class Baked(Scene):
    """Pictures whose red is how far the camera has turned from the one conditioned on."""

    def mapping(self, z: Tensor, c: Tensor, *rest: Any) -> Tensor:
        del rest
        return torch.cat([c[:, 3:4], z[:, 1:]], 1)[:, None]

    def render(self, planes: Tensor, ws: Tensor, c: Tensor, *rest: Any, **options: Any) -> Any:
        rendered = super().render(planes, ws, c, *rest, **options)
        turned = (ws[:, 0, :1] - c[:, 3:4]).float()
        colour = torch.cat([turned, ws[:, 0, 1:3].float() / 4], 1)
        return rendered._replace(image=colour[:, :, None, None].expand_as(rendered.image))


def test_fid3d_tells_what_holds_from_the_conditioning_camera_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.generator_metrics.load_detector", mean_colour_detector)
    sampler, others = sampler_of(Baked()), sampler_of(Baked(), seed=5000)
    reals = RealImages(
        60, 64, "baked", lambda i: torch.cat([others(int(k), 1) for k in i]), name="baked"
    )
    options = MetricOptions(batch=16)
    values = evaluate(["fid3d40_lite0"], sampler, reals, options)[0].values
    assert list(values) == ["fid3d40_lite0", "fid3d40_lite0_own_camera"]
    assert values["fid3d40_lite0"] > 3 * values["fid3d40_lite0_own_camera"]
    first = sampler.pictures(0, 4, OTHER_CAMERA_STREAM)
    assert torch.equal(sampler.pictures(2, 2, OTHER_CAMERA_STREAM), first[2:])
    assert (first.float().mean((2, 3))[:, 0] - 128).abs().min() > 1
    assert (sampler(0, 4)[:, 0] == 128).all()
