"""Augmentation: transforms against closed forms and scipy, random draws against their
distributions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from training.gan import augment, augment_transforms
from training.gan.augment import SYM6, AugmentPipe
from training.gan.augment_transforms import TRANSFORMS, neutral_parameters

GEOMETRY = (
    "integer_shift",
    "isotropic_scale",
    "rotation_before",
    "anisotropic_scale",
    "rotation_after",
    "fractional_shift",
)


def parameters_with(count: int, **values: Any) -> augment_transforms.TransformParameters:
    """Neutral parameters but for `values`, each given as one sample's value or as a list of `count`
    of them.
    """
    neutral = neutral_parameters(count)
    chosen = {}
    for name, value in values.items():
        field = getattr(neutral, name)
        chosen[name] = torch.as_tensor(value, dtype=field.dtype).expand(field.shape).clone()
    return dataclasses.replace(neutral, **chosen)


def cosines(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Smooth function (3, ...) of pixel coordinates, its own mirror image at both border pixels'
    centres: reflection is built in.
    """
    u, v = math.pi * x / (size - 1), math.pi * y / (size - 1)
    return (
        np.stack(
            [
                np.cos(2 * u) * np.cos(v),
                np.cos(3 * v) + 0.5 * np.cos(u),
                np.cos(u) * np.cos(3 * u) - np.cos(2 * v),
            ]
        )
        / 2
    )


def cosine_image(size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    y, x = np.mgrid[:size, :size].astype(float)
    return torch.tensor(cosines(x, y, size), dtype=dtype)[None]


def expected_source(
    name: str, value: Any, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a transform alone finds the content of the place (x, y), relative to the centre; y
    points down.
    """
    if name.endswith("shift"):
        return x - value[0], y - value[1]
    if name == "isotropic_scale":
        return x / value, y / value
    if name == "anisotropic_scale":
        return x / value, y * value
    turned = (x + 1j * y) * np.exp(-1j * value)  # a clockwise turn seen with y down
    return turned.real, turned.imag


# --------------------------------------------------------------------------------------------------
# The filter


def test_sym6_is_orthonormal_with_six_vanishing_moments():
    taps = np.array(SYM6)
    products = [np.dot(taps[2 * k :], taps[: 12 - 2 * k]) for k in range(6)]
    np.testing.assert_allclose(products, [1, 0, 0, 0, 0, 0], atol=1e-11)
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    moments = [np.dot((-1.0) ** np.arange(12) * np.arange(12) ** j, taps) for j in range(6)]
    np.testing.assert_allclose(moments, 0, atol=1e-8)


def test_sym6_is_the_least_asymmetric_factor():
    # Daubechies' construction: |H|^2 = 2 cos^12(w/2) P(sin^2(w/2)); of each root of P either the
    # inner or the outer zero is taken.
    polynomial = [math.comb(5 + k, k) for k in range(6)]
    groups = [root for root in np.roots(polynomial[::-1]) if root.imag >= -1e-12]
    candidates = []
    for sides in itertools.product((0, 1), repeat=len(groups)):
        zeros = [-1.0] * 6
        for side, root in zip(sides, groups, strict=True):
            pair = sorted(np.roots([1, 4 * root - 2, 1]), key=abs)  # sin^2(w/2) = (2 - z - 1/z) / 4
            zeros += [pair[side]] if abs(root.imag) < 1e-9 else [pair[side], pair[side].conjugate()]
        taps = np.poly(zeros).real
        candidates.append(taps * math.sqrt(2) / taps.sum())

    def bend(taps: np.ndarray) -> float:
        frequencies = np.linspace(0, 0.9 * math.pi, 200)
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(frequencies, np.arange(12))) @ taps))
        slope = np.dot(frequencies, phase) / np.dot(frequencies, frequencies)
        return float(np.abs(phase - slope * frequencies).max())

    best = min(candidates, key=bend)
    assert min(np.abs(best - SYM6).max(), np.abs(best[::-1] - SYM6).max()) < 1e-9


@pytest.mark.parametrize("size", [8, 33, 64])
def test_reduction_inverts_supersampling(size):
    up, down = augment.resampling_matrices(size, torch.float64, torch.device("cpu"))
    aligned = up[-augment.FIRST_COLUMN :][: down.shape[1]]
    torch.testing.assert_close(
        down @ aligned, torch.eye(size, dtype=torch.float64), atol=1e-11, rtol=0
    )


def test_supersampling_reflects_at_the_borders():
    row = np.random.RandomState(0).randn(16)
    up, _ = augment.resampling_matrices(16, torch.float64, torch.device("cpu"))
    padded = np.pad(row, 10, mode="reflect")
    stuffed = np.zeros(2 * len(padded))
    stuffed[::2] = padded
    filtered = np.convolve(stuffed, SYM6)
    start = 20 + augment.FIRST_COLUMN
    np.testing.assert_allclose(up.numpy() @ row, filtered[start : start + 44], atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Geometry


def test_flip_and_quarter_turns_move_whole_pixels():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    flips, turns = [0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3]
    result = augment.augment(images, parameters_with(8, x_flip=flips, quarter_turns=turns))
    for i, (flip, k) in enumerate(zip(flips, turns, strict=True)):
        flipped = torch.flip(images[i], dims=[2]) if flip else images[i]
        assert torch.equal(result[i], torch.rot90(flipped, k, dims=(1, 2)))


def test_neutral_warp_returns_noise_unchanged():
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(
        augment.warp(images, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)),
        images,
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("shift", [(5, 0), (0, -4), (-3, 4)])
def test_whole_pixel_shift_equals_roll_away_from_borders(shift):
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = augment.augment(images, parameters_with(1, integer_shift=shift))
    expected = images.roll((shift[1], shift[0]), (2, 3))
    torch.testing.assert_close(
        result[..., 11:-11, 11:-11], expected[..., 11:-11, 11:-11], atol=1e-10, rtol=0
    )


def test_whole_pixel_shift_brings_in_the_reflected_border():
    image = ndimage.gaussian_filter(
        np.random.RandomState(2).randn(3, 32, 32), (0, 2, 2), mode="mirror"
    )
    image /= image.std()
    result = augment.augment(torch.tensor(image)[None], parameters_with(1, integer_shift=(4, -3)))[
        0
    ].numpy()
    expected = np.pad(image, ((0, 0), (0, 3), (4, 0)), mode="reflect")[:, 3:, :-4]
    # of a standard deviation; the filter is not quite symmetric
    assert np.abs(result - expected).max() < 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("integer_shift", (6, -7)),
        ("fractional_shift", (3.3, 9.6)),
        ("fractional_shift", (-150.5, 70.2)),
        ("isotropic_scale", 1.3),
        ("isotropic_scale", 0.7),
        ("rotation_before", 0.4),
        ("rotation_after", -2.7),
        ("rotation_before", math.pi),
        ("anisotropic_scale", 1.25),
        ("anisotropic_scale", 0.8),
    ],
)
def test_each_warp_equals_its_closed_form_everywhere(name, value):
    size = 64
    result = augment.augment(cosine_image(size), parameters_with(1, **{name: value}))[0].numpy()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    x, y = expected_source(name, value, x, y)
    expected = cosines(x + (size - 1) / 2, y + (size - 1) / 2, size)
    # what bilinear sampling at double resolution costs
    assert np.abs(result - expected).max() < 0.01
    assert np.abs(result - cosine_image(size)[0].numpy()).max() > 0.1


def test_combined_warp_follows_the_papers_order():
    size = 64
    values = dict(zip(GEOMETRY, ((3, -5), 1.2, 0.7, 0.85, -1.9, (4.25, 2.5)), strict=True))
    result = augment.augment(cosine_image(size), parameters_with(1, **values))[0].numpy()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    for name in reversed(GEOMETRY):
        x, y = expected_source(name, values[name], x, y)
    expected = cosines(x + (size - 1) / 2, y + (size - 1) / 2, size)
    assert np.abs(result - expected).max() < 0.01


def test_flip_and_turn_come_before_the_warp():
    image = cosine_image(32)
    both = augment.augment(
        image,
        parameters_with(1, x_flip=True, quarter_turns=1, rotation_before=0.3, integer_shift=(3, 1)),
    )
    first = torch.rot90(image.flip(3), 1, (2, 3))
    torch.testing.assert_close(
        both, augment.augment(first, parameters_with(1, rotation_before=0.3, integer_shift=(3, 1)))
    )


def test_warp_agrees_with_scipy_splines():
    size = 48
    image = ndimage.gaussian_filter(np.random.RandomState(1).randn(size, size), 3, mode="mirror")
    image /= image.std()
    matrix = augment_transforms.warp_matrix(
        parameters_with(1, rotation_before=0.9, isotropic_scale=1.1, fractional_shift=(5.4, -2.2))
    )
    result = augment.warp(torch.tensor(image)[None, None], matrix)[0, 0].numpy()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    source = np.linalg.inv(matrix[0].numpy()) @ np.stack(
        [x.ravel(), y.ravel(), np.ones(size * size)]
    )
    rows, columns = (source[1] + (size - 1) / 2, source[0] + (size - 1) / 2)
    expected = ndimage.map_coordinates(image, [rows, columns], order=5, mode="mirror").reshape(
        size, size
    )
    error = np.abs(result - expected)
    assert error.max() < 0.1
    assert error.mean() < 0.01


def test_low_pass_removes_what_a_shrunk_image_cannot_show():
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 3, 64, 64)
    # At scale 0.6 stripes of half a cycle per pixel become 0.83, which plain sampling shows as
    # strong false ones of 0.17.
    shrunk = augment.augment(stripes, parameters_with(1, isotropic_scale=0.6))
    grid = torch.nn.functional.affine_grid(
        torch.tensor([[[1 / 0.6, 0, 0], [0, 1 / 0.6, 0]]]), [1, 3, 64, 64], align_corners=False
    )
    plain = torch.nn.functional.grid_sample(stripes, grid, align_corners=False)
    inside = (..., slice(20, 44), slice(20, 44))  # away from the seams of the reflection
    assert plain[inside].std() > 0.5
    assert shrunk[inside].std() < 0.1


@pytest.mark.parametrize("size", [32, 128, 512])
def test_strong_transforms_stay_within_the_image_at_any_size(size):
    torch.manual_seed(3)
    image = torch.full((2, 3, size, size), 0.5)
    values = {
        "isotropic_scale": [0.2, 4.0],
        "fractional_shift": [[3.0 * size, 0.0], [-size, size]],
        "rotation_after": [1.0, 2.0],
    }
    result = augment.augment(image, parameters_with(2, **values))
    torch.testing.assert_close(result, image, atol=1e-4, rtol=0)
    assert torch.isfinite(AugmentPipe(1.0)(torch.randn(1, 6, size, size))).all()


# --------------------------------------------------------------------------------------------------
# Colour

GREY = np.ones(3) / math.sqrt(3)


def expected_colour(name: str, value: float, rgb: np.ndarray) -> np.ndarray:
    """A colour transform alone on rgb (3,), written with dot and cross products."""
    luma = np.dot(rgb, GREY) * GREY
    chroma = rgb - luma
    if name == "brightness":
        return rgb + value
    if name == "contrast":
        return rgb * value
    if name == "luma_flip":
        return chroma - luma if value else rgb
    if name == "hue":
        return luma + math.cos(value) * chroma + math.sin(value) * np.cross(GREY, chroma)
    return luma + value * chroma


COLOUR = (
    ("brightness", 0.3),
    ("contrast", 1.7),
    ("luma_flip", True),
    ("hue", 1.1),
    ("saturation", 2.5),
)


@pytest.mark.parametrize(
    "steps",
    [*((step,) for step in COLOUR), COLOUR],
    ids=lambda steps: "+".join(name for name, _ in steps),
)
def test_colour_equals_its_formula_alone_and_in_order(steps):
    images = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    result = augment.augment(images, parameters_with(2, **dict(steps))).numpy()
    for n, triple, i, j in itertools.product(range(2), range(2), range(4), range(4)):
        channels = slice(3 * triple, 3 * triple + 3)
        rgb = images[n, channels, i, j].numpy()
        for name, value in steps:
            rgb = expected_colour(name, value, rgb)
        np.testing.assert_allclose(result[n, channels, i, j], rgb, atol=1e-12)


def test_full_turn_of_hue_by_thirds_permutes_the_channels():
    images = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    result = augment.augment(images, parameters_with(1, hue=2 * math.pi / 3))
    torch.testing.assert_close(result, images[:, [2, 0, 1]])  # red becomes green


# --------------------------------------------------------------------------------------------------
# Random draws

# Share of samples that differ from neutral among those to which a transform applies.
CHANGING = {
    "x_flip": 1 / 2,
    "luma_flip": 1 / 2,
    "quarter_turns": 3 / 4,
    "integer_shift": 1 - (1 / 128) ** 2,
}


def changed(parameters: augment_transforms.TransformParameters, name: str) -> torch.Tensor:
    value = getattr(parameters, name)
    return (value != getattr(neutral_parameters(len(value)), name)).reshape(len(value), -1).any(1)


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_each_transform_applies_with_its_probability(p):
    torch.manual_seed(0)
    count = 20000
    parameters = augment_transforms.draw_parameters(count, 512, p)
    for name in TRANSFORMS:
        expected = CHANGING.get(name, 1) * (
            1 - math.sqrt(1 - p) if name.startswith("rotation") else p
        )
        bound = 5 * math.sqrt(expected * (1 - expected) / count)
        assert abs(changed(parameters, name).double().mean().item() - expected) < bound, name
    rotated = changed(parameters, "rotation_before") | changed(parameters, "rotation_after")
    assert abs(rotated.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_transforms_apply_independently():
    torch.manual_seed(0)
    parameters = augment_transforms.draw_parameters(20000, 512, 0.5)
    flags = torch.stack([changed(parameters, name) for name in sorted(TRANSFORMS)]).double()
    correlation = torch.corrcoef(flags) - torch.eye(len(TRANSFORMS), dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(20000)


def test_strengths_have_the_papers_distributions():
    torch.manual_seed(0)
    count, size = 40000, 64
    drawers = augment_transforms.drawers(count, augment_transforms.CPU)
    strengths = augment_transforms.draw_strengths(count, size, *drawers)
    deviations = {
        "isotropic_scale": (strengths.isotropic_scale.log2(), 0.2),
        "anisotropic_scale": (strengths.anisotropic_scale.log2(), 0.2),
        "shift right": (strengths.fractional_shift[:, 0], 8.0),
        "shift down": (strengths.fractional_shift[:, 1], 8.0),
        "brightness": (strengths.brightness, 0.2),
        "contrast": (strengths.contrast.log2(), 0.5),
        "saturation": (strengths.saturation.log2(), 1.0),
        "rotation_before": (strengths.rotation_before, math.pi / math.sqrt(3)),
        "rotation_after": (strengths.rotation_after, math.pi / math.sqrt(3)),
        "hue": (strengths.hue, math.pi / math.sqrt(3)),
    }
    for name, (values, deviation) in deviations.items():
        assert values.std().item() == pytest.approx(deviation, rel=0.02), name
        assert abs(values.mean().item()) < 5 * deviation / math.sqrt(count), name
    for angles in (strengths.rotation_before, strengths.rotation_after, strengths.hue):
        assert 3.13 < angles.max() <= math.pi
        assert -math.pi <= angles.min() < -3.13
    assert set(strengths.integer_shift.unique().tolist()) == set(range(-8, 9))
    assert (
        torch.bincount(strengths.quarter_turns, minlength=4)
        .double()
        .div(count)
        .sub(0.25)
        .abs()
        .max()
        < 0.011
    )


def test_only_the_chosen_transforms_happen():
    for name in TRANSFORMS:
        torch.manual_seed(1)
        parameters = augment_transforms.draw_parameters(64, 64, 1.0, {name})
        assert changed(parameters, name).any()
        assert not any(changed(parameters, other).any() for other in TRANSFORMS - {name})


# --------------------------------------------------------------------------------------------------
# The pipe


def test_p_zero_returns_the_input_and_uses_no_randomness():
    images = torch.randn(4, 6, 32, 32)
    state = torch.get_rng_state()
    assert torch.equal(AugmentPipe(0.0)(images), images)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_drawn_neutral_come_out_bit_for_bit():
    torch.manual_seed(5)
    images = torch.randn(64, 6, 32, 32)
    state = torch.get_rng_state()
    result = AugmentPipe(0.1)(images)
    torch.set_rng_state(state)
    parameters = augment_transforms.draw_parameters(64, 32, AugmentPipe(0.1).p.item())
    touched = torch.stack([changed(parameters, name) for name in TRANSFORMS]).any(0)
    assert 10 < touched.sum() < 60
    assert torch.equal(
        torch.tensor([torch.equal(a, b) for a, b in zip(images, result, strict=True)]), ~touched
    )


def test_seed_fixes_the_result():
    images, pipe = torch.randn(4, 3, 32, 32), AugmentPipe(0.8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pipe(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_both_halves_of_six_channels_are_transformed_alike():
    torch.manual_seed(0)
    image, raw = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)
    results = []
    for images in (torch.cat([image, raw], 1), image, raw):
        torch.manual_seed(7)
        results.append(AugmentPipe(0.7)(images))
    torch.testing.assert_close(results[0], torch.cat(results[1:], 1))


def test_batch_equals_its_samples():
    torch.manual_seed(0)
    images = torch.randn(6, 3, 32, 32)
    parameters = augment_transforms.draw_parameters(6, 32, 0.7)
    result = augment.augment(images, parameters)
    for i in range(6):
        single = augment_transforms.TransformParameters(
            **{name: getattr(parameters, name)[i : i + 1] for name in TRANSFORMS}
        )
        torch.testing.assert_close(result[i : i + 1], augment.augment(images[i : i + 1], single))


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_gradients_of_both_orders(p):
    pipe = AugmentPipe(p)

    def seeded(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(11)
        return pipe(images)

    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, (images,), fast_mode=True)
    # the pipe itself is linear
    assert torch.autograd.gradgradcheck(lambda x: seeded(x).tanh(), (images,), fast_mode=True)


def test_gradients_after_a_first_use_in_inference_mode():
    augment.resampling_matrices.cache_clear()
    torch.manual_seed(0)
    pipe = AugmentPipe(1.0)
    with torch.inference_mode():
        pipe(torch.randn(2, 3, 16, 16))
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(pipe(images).square().sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0


def test_probability_travels_with_the_state():
    copy = AugmentPipe()
    copy.load_state_dict(AugmentPipe(0.35).state_dict())
    assert copy.p.item() == pytest.approx(0.35)


def test_wrong_shapes_and_names_are_refused():
    for shape in ((1, 4, 32, 32), (1, 3, 32, 16), (3, 32, 32)):
        with pytest.raises(ValueError, match="expected images of shape"):
            AugmentPipe(0.5)(torch.zeros(shape))
    with pytest.raises(ValueError, match="unknown transform 'cutout'"):
        AugmentPipe(0.5, {"hue", "cutout"})
