"""The transforms of augmentation: their random strengths, and the matrices that these make (Karras
et al. 2020, appendix B).

Pixel coordinates in matrices have their origin in the image's centre, x to the right and y down, in
pixels; matrices map the place of something before the transform to its place after it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_utils import sample_random
from torch_utils.devices import is_asynchronous

SHIFT = 0.125  # of the image size: limit of the whole-pixel shift, standard deviation of the other
SCALE_SD = 0.2  # in octaves, both scalings
CPU = torch.device("cpu")
Draw = Callable[..., Tensor]
BRIGHTNESS_SD = 0.2
CONTRAST_SD = 0.5  # in octaves
SATURATION_SD = 1.0  # in octaves


# --------------------------------------------------------------------------------------------------
# Random strengths


@dataclass(frozen=True)
class TransformParameters:
    """Strength of every transform for N samples, in the order in which they act. Fields are
    float64 unless noted, all on one device.
    """

    x_flip: Tensor  # (N,) bool
    quarter_turns: Tensor  # (N,) int64, anticlockwise turns by 90 degrees
    integer_shift: Tensor  # (N, 2) pixels right and down, whole numbers
    isotropic_scale: Tensor  # (N,) factor
    rotation_before: Tensor  # (N,) radians clockwise
    anisotropic_scale: Tensor  # (N,) factor on x; y is divided by it
    rotation_after: Tensor  # (N,) radians clockwise
    fractional_shift: Tensor  # (N, 2) pixels right and down
    brightness: Tensor  # (N,) added to all channels
    contrast: Tensor  # (N,) factor on all channels
    luma_flip: Tensor  # (N,) bool: mirrored at the plane across the grey axis
    hue: Tensor  # (N,) radians around the grey axis
    saturation: Tensor  # (N,) factor on the part orthogonal to the grey axis


TRANSFORMS = frozenset(item.name for item in dataclasses.fields(TransformParameters))
ROTATIONS = frozenset({"rotation_before", "rotation_after"})
UNIFORM_NUMBERS = 8 + len(TRANSFORMS)  # that a sample takes: strengths, and whether each applies
NORMAL_NUMBERS = 7


def drawers(count: int, device: torch.device) -> tuple[Draw, Draw]:
    """Functions that draw uniform and normal numbers (count, ...), float64, for `count` samples. On
    a GPU, where each draw of each sample is a launch, they hand out what is drawn here at once.
    """
    kinds = (sample_random.rand, UNIFORM_NUMBERS), (sample_random.randn, NORMAL_NUMBERS)
    if not is_asynchronous(device):
        rand, randn = (functools.partial(kind, dtype=torch.float64) for kind, _ in kinds)
        return rand, randn
    uniform, normal = (
        _Drawn(kind(count, numbers, dtype=torch.float64, device=device)) for kind, numbers in kinds
    )
    return uniform, normal


class _Drawn:
    """Hands out the columns of `numbers` (N, K) in turn."""

    def __init__(self, numbers: Tensor) -> None:
        self._left = numbers

    def __call__(self, count: int, *shape: int) -> Tensor:
        taken, self._left = self._left.tensor_split([math.prod(shape)], dim=1)
        return taken.reshape(count, *shape)


def neutral_parameters(count: int, device: torch.device = CPU) -> TransformParameters:
    """Parameters that leave `count` samples as they are."""
    zeros, ones = (torch.full((count,), x, dtype=torch.float64, device=device) for x in (0.0, 1.0))
    return TransformParameters(
        x_flip=zeros.bool(),
        quarter_turns=zeros.long(),
        integer_shift=zeros[:, None].repeat(1, 2),
        isotropic_scale=ones,
        rotation_before=zeros,
        anisotropic_scale=ones,
        rotation_after=zeros,
        fractional_shift=zeros[:, None].repeat(1, 2),
        brightness=zeros,
        contrast=ones,
        luma_flip=zeros.bool(),
        hue=zeros,
        saturation=ones,
    )


def draw_strengths(count: int, size: int, rand: Draw, randn: Draw) -> TransformParameters:
    """Random strengths of all transforms for `count` images of `size` pixels, as if each applied
    (appendix B).
    """
    return TransformParameters(
        x_flip=rand(count) < 0.5,
        quarter_turns=(rand(count) * 4).long(),
        integer_shift=((2 * rand(count, 2) - 1) * SHIFT * size).round(),
        isotropic_scale=torch.exp2(SCALE_SD * randn(count)),
        rotation_before=(2 * rand(count) - 1) * math.pi,
        anisotropic_scale=torch.exp2(SCALE_SD * randn(count)),
        rotation_after=(2 * rand(count) - 1) * math.pi,
        fractional_shift=randn(count, 2) * SHIFT * size,
        brightness=BRIGHTNESS_SD * randn(count),
        contrast=torch.exp2(CONTRAST_SD * randn(count)),
        luma_flip=rand(count) < 0.5,
        hue=(2 * rand(count) - 1) * math.pi,
        saturation=torch.exp2(SATURATION_SD * randn(count)),
    )


def transform_probability(name: str, p: float | Tensor) -> float | Tensor:
    """Chance that transform `name` applies: p, but for the two rotations such that p is the chance
    of at least one (appendix B).
    """
    return 1 - (1 - p) ** 0.5 if name in ROTATIONS else p


def draw_parameters(
    count: int,
    size: int,
    p: float | Tensor,
    transforms: Collection[str] = TRANSFORMS,
    device: torch.device = CPU,
) -> TransformParameters:
    """Random parameters for `count` images of `size` pixels where each of `transforms` applies with
    its probability, else is neutral.

    They are drawn on `device`, where p may lie as well. The number of random numbers used does not
    depend on p or on `transforms`.
    """
    rand, randn = drawers(count, device)
    neutral, strengths = (
        neutral_parameters(count, device),
        draw_strengths(count, size, rand, randn),
    )
    chosen = {}
    for name in (item.name for item in dataclasses.fields(TransformParameters)):
        applies = rand(count) < transform_probability(name, p)
        value, rest = getattr(strengths, name), getattr(neutral, name)
        chosen[name] = (
            torch.where(applies.reshape(-1, *[1] * (value.ndim - 1)), value, rest)
            if name in transforms
            else rest
        )
    return TransformParameters(**chosen)


# --------------------------------------------------------------------------------------------------
# Matrices


def affine(linear: Tensor, offset: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) of x -> linear x + offset, from (N, d, d) or (d, d)
    and (N, d).
    """
    side = offset.shape[-1] + 1
    matrix = torch.eye(side, dtype=linear.dtype, device=offset.device).repeat(len(offset), 1, 1)
    matrix[:, :-1, :-1] = linear
    matrix[:, :-1, -1] = offset
    return matrix


def translation(offset: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) that add `offset` (N, d)."""
    return affine(_identity(offset, offset.shape[-1]), offset)


def scaling(factors: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) that multiply by `factors` (N, d)."""
    return affine(torch.diag_embed(factors), torch.zeros_like(factors))


def rotation(angle: Tensor) -> Tensor:
    """Homogeneous matrices (N, 3, 3) that turn the plane by `angle` (N,) radians from x towards y:
    clockwise, since y is down.
    """
    sine, cosine = angle.sin(), angle.cos()
    linear = torch.stack([cosine, -sine, sine, cosine], dim=-1).unflatten(-1, (2, 2))
    return affine(linear, angle.new_zeros(len(angle), 2))


def linear_colour(linear: Tensor) -> Tensor:
    """Homogeneous matrices (N, 4, 4) of linear maps of RGB (N, 3, 3)."""
    return affine(linear, linear.new_zeros(len(linear), 3))


def grey_projection(like: Tensor) -> Tensor:
    """The projection v v^T (3, 3) onto the luma axis v = (1, 1, 1) / sqrt(3)."""
    return like.new_full((3, 3), 1 / 3)


def luma_reflection(flip: Tensor) -> Tensor:
    """Matrices (N, 4, 4) of the Householder reflection 1 - 2 v v^T that negates luma and keeps
    chroma, where `flip` (N,) says so.
    """
    flip = flip.double()[:, None, None]
    return linear_colour(_identity(flip, 3) - 2 * flip * grey_projection(flip))


def hue_rotation(angle: Tensor) -> Tensor:
    """Matrices (N, 4, 4) that rotate RGB around the luma axis by `angle` (N,) radians, red towards
    green (Rodrigues' formula).
    """
    grey, identity = grey_projection(angle), _identity(angle, 3)
    shifted = identity.roll(1, dims=0)
    cross = (shifted - shifted.T) / math.sqrt(3)  # of the axis: v x w = cross w
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return linear_colour(grey + cosine * (identity - grey) + sine * cross)


def chroma_scaling(factor: Tensor) -> Tensor:
    """Matrices (N, 4, 4) that multiply the part of RGB orthogonal to the luma axis by `factor`
    (N,).
    """
    grey = grey_projection(factor)
    return linear_colour(grey + factor[:, None, None] * (_identity(factor, 3) - grey))


def _identity(like: Tensor, side: int) -> Tensor:
    return torch.eye(side, dtype=like.dtype, device=like.device)


def warp_matrix(parameters: TransformParameters) -> Tensor:
    """Pixel coordinate matrices (N, 3, 3) of all geometric transforms after the flip and the
    quarter turns.
    """
    isotropic, anisotropic = parameters.isotropic_scale, parameters.anisotropic_scale
    steps = (
        translation(parameters.integer_shift),
        scaling(torch.stack([isotropic, isotropic], dim=-1)),
        rotation(parameters.rotation_before),
        scaling(torch.stack([anisotropic, 1 / anisotropic], dim=-1)),
        rotation(parameters.rotation_after),
        translation(parameters.fractional_shift),
    )
    return functools.reduce(lambda earlier, later: later @ earlier, steps)


def colour_matrix(parameters: TransformParameters) -> Tensor:
    """RGB matrices (N, 4, 4) of all colour transforms."""
    steps = (
        translation(parameters.brightness[:, None].expand(-1, 3)),
        scaling(parameters.contrast[:, None].expand(-1, 3)),
        luma_reflection(parameters.luma_flip),
        hue_rotation(parameters.hue),
        chroma_scaling(parameters.saturation),
    )
    return functools.reduce(lambda earlier, later: later @ earlier, steps)
