"""Adaptive discriminator augmentation (Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data").

The pipeline is that of appendix B: geometry (one warp), then colour, each transform with its own chance p. It runs in four steps, each
of which is a plain function: `draw_parameters` (random numbers), `warp_matrix` and `colour_matrix` (3x3 and 4x4 matrices), `augment`.

Pixel coordinates in matrices have their origin in the image's centre, x to the right and y down, in pixels; matrices map the place of
something before the transform to its place after it. Images are (N, 3 * T, H, H) with H = W and values in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib.console import UserError
from torch_utils import sample_random
from training.config import AugmentConfig

SHIFT = 0.125  # of the image size: limit of the whole-pixel shift, standard deviation of the other
SCALE_SD = 0.2  # in octaves, both scalings
BRIGHTNESS_SD = 0.2
CONTRAST_SD = 0.5  # in octaves
SATURATION_SD = 1.0  # in octaves

# Low-pass filter of the sym6 wavelet (Daubechies, "Ten Lectures on Wavelets", table 6.3): orthonormal to its even shifts, sum sqrt(2).
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# Where the filter sits, in taps: its delay for slow signals. Ignoring it would move turned pictures by a part of a pixel.
SYM6_CENTRE = sum(tap * value for tap, value in enumerate(SYM6)) / sum(SYM6)
# Positions up to this many pixels outside the image are read as they are from the (reflected, then supersampled) image: as far as the
# downsampling filter looks. An undistorted image so comes back exactly, borders included; folding these positions at the border would not
# do, because the filter is not symmetric.
MARGIN = 3
# First supersampled column: the neighbour of position -MARGIN on its far side (column k lies at (k - SYM6_CENTRE) / 2 pixels).
FIRST_COLUMN = math.floor(SYM6_CENTRE - 2 * MARGIN)


# ---------------------------------------------------------------------------------------------------------------------
# Random parameters


@dataclass(frozen=True)
class TransformParameters:
    """Strength of every transform for N samples, in the order in which they act. Fields are on the CPU, in float64 unless noted."""

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


def neutral_parameters(count: int) -> TransformParameters:
    """Parameters that leave `count` samples as they are."""
    zeros, ones = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
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


def draw_strengths(count: int, size: int) -> TransformParameters:
    """Random strengths of all transforms for `count` images of `size` pixels, as if each applied (appendix B).

    Like all randomness here they come from CPU generators, whatever device the images are on.
    """
    rand = functools.partial(sample_random.rand, dtype=torch.float64)
    randn = functools.partial(sample_random.randn, dtype=torch.float64)
    return TransformParameters(
        x_flip=rand(count) < 0.5,
        quarter_turns=sample_random.randint(4, count),
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


def transform_probability(name: str, p: float) -> float:
    """Chance that transform `name` applies: p, but for the two rotations such that p is the chance of at least one (appendix B)."""
    return 1 - math.sqrt(1 - p) if name in ROTATIONS else p


def draw_parameters(count: int, size: int, p: float, transforms: Collection[str] = TRANSFORMS) -> TransformParameters:
    """Random parameters for `count` images of `size` pixels where each of `transforms` applies with its probability, else is neutral.

    The number of random numbers used does not depend on p or on `transforms`.
    """
    neutral, strengths = neutral_parameters(count), draw_strengths(count, size)
    chosen = {}
    for name in (item.name for item in dataclasses.fields(TransformParameters)):
        applies = sample_random.rand(count, dtype=torch.float64) < transform_probability(name, p)
        value, rest = getattr(strengths, name), getattr(neutral, name)
        chosen[name] = torch.where(applies.reshape(-1, *[1] * (value.ndim - 1)), value, rest) if name in transforms else rest
    return TransformParameters(**chosen)


# ---------------------------------------------------------------------------------------------------------------------
# Matrices


def affine(linear: Tensor, offset: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) of x -> linear x + offset, from (N, d, d) or (d, d) and (N, d)."""
    matrix = torch.eye(offset.shape[-1] + 1, dtype=linear.dtype).repeat(len(offset), 1, 1)
    matrix[:, :-1, :-1] = linear
    matrix[:, :-1, -1] = offset
    return matrix


def translation(offset: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) that add `offset` (N, d)."""
    return affine(torch.eye(offset.shape[-1], dtype=offset.dtype), offset)


def scaling(factors: Tensor) -> Tensor:
    """Homogeneous matrices (N, d + 1, d + 1) that multiply by `factors` (N, d)."""
    return affine(torch.diag_embed(factors), torch.zeros_like(factors))


def rotation(angle: Tensor) -> Tensor:
    """Homogeneous matrices (N, 3, 3) that turn the plane by `angle` (N,) radians from x towards y: clockwise, since y is down."""
    sine, cosine = angle.sin(), angle.cos()
    linear = torch.stack([cosine, -sine, sine, cosine], dim=-1).unflatten(-1, (2, 2))
    return affine(linear, torch.zeros(len(angle), 2, dtype=angle.dtype))


def linear_colour(linear: Tensor) -> Tensor:
    """Homogeneous matrices (N, 4, 4) of linear maps of RGB (N, 3, 3)."""
    return affine(linear, torch.zeros(len(linear), 3, dtype=linear.dtype))


def grey_projection(dtype: torch.dtype) -> Tensor:
    """The projection v v^T (3, 3) onto the luma axis v = (1, 1, 1) / sqrt(3)."""
    return torch.full((3, 3), 1 / 3, dtype=dtype)


def luma_reflection(flip: Tensor) -> Tensor:
    """Matrices (N, 4, 4) of the Householder reflection 1 - 2 v v^T that negates luma and keeps chroma, where `flip` (N,) says so."""
    flip = flip.double()[:, None, None]
    return linear_colour(torch.eye(3, dtype=flip.dtype) - 2 * flip * grey_projection(flip.dtype))


def hue_rotation(angle: Tensor) -> Tensor:
    """Matrices (N, 4, 4) that rotate RGB around the luma axis by `angle` (N,) radians, red towards green (Rodrigues' formula)."""
    grey = grey_projection(angle.dtype)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=angle.dtype) / math.sqrt(3)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return linear_colour(grey + cosine * (torch.eye(3, dtype=angle.dtype) - grey) + sine * cross)


def chroma_scaling(factor: Tensor) -> Tensor:
    """Matrices (N, 4, 4) that multiply the part of RGB orthogonal to the luma axis by `factor` (N,)."""
    grey = grey_projection(factor.dtype)
    return linear_colour(grey + factor[:, None, None] * (torch.eye(3, dtype=factor.dtype) - grey))


def warp_matrix(parameters: TransformParameters) -> Tensor:
    """Pixel coordinate matrices (N, 3, 3) of all geometric transforms after the flip and the quarter turns."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Applying them


def reflect(position: Tensor, size: int) -> Tensor:
    """Coordinates in pixels, any number, folded into [0, size - 1] by mirrors on the first and the last pixel's centre."""
    return (size - 1) - (torch.remainder(position, 2 * (size - 1)) - (size - 1)).abs()


@functools.lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # what is kept here must serve gradients later
def resampling_matrices(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The sym6 filter as matrices: an image X of `size` x `size` is supersampled by 2 as A X A^T; Y is low-passed and reduced as B Y B^T.

    Dense matrices beat 12-tap convolutions of single channels up to 256 pixels and are not far behind at 512.

    Returns:
        A (2 size + 12, size): from a row of pixels, reflected at its ends, to columns FIRST_COLUMN, FIRST_COLUMN + 1, ... of its
            supersampled version; column k lies at (k - SYM6_CENTRE) / 2 pixels.
        B (size, 2 size + 10): from columns 0, 1, ... of a supersampled row back to pixels.
    """
    taps, values = torch.arange(len(SYM6)), torch.tensor(SYM6, dtype=torch.float64)
    pixels = torch.arange(-len(SYM6), size + len(SYM6))
    columns = 2 * pixels[:, None] + taps - FIRST_COLUMN
    up = torch.zeros(2 * size + len(SYM6), size, dtype=torch.float64)
    inside = (columns >= 0) & (columns < len(up))
    rows = reflect(pixels, size)[:, None].expand_as(columns)
    up.index_put_((columns[inside], rows[inside]), values.expand_as(columns)[inside], accumulate=True)
    pixels = torch.arange(size)[:, None]
    down = torch.zeros(size, 2 * size + len(SYM6) - 2, dtype=torch.float64)
    down[pixels, 2 * pixels + taps] = values
    return up.to(device, dtype), down.to(device, dtype)


def sampling_grid(matrices: Tensor, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where each pixel of the supersampled result comes from in the supersampled source.

    Returns:
        (N, 2 size + 10, 2 size + 10, 2), in the units of `grid_sample` with align_corners, for `matrices` (N, 3, 3) as `warp` takes them.
    """
    centre = (size - 1) / 2
    inverse = torch.linalg.inv(matrices)[:, :2].to(device, dtype)
    steps = (torch.arange(2 * size + len(SYM6) - 2, dtype=dtype, device=device) - SYM6_CENTRE) / 2 - centre
    along_x, along_y, offset = (inverse[:, None, None, :, i] for i in range(3))
    source = along_x * steps[:, None] + (along_y * steps[:, None, None] + offset) + centre
    outside = (source < -MARGIN) | (source > size - 1 + MARGIN)
    source = torch.where(outside, reflect(source, size), source)
    columns = 2 * source + (SYM6_CENTRE - FIRST_COLUMN)
    return columns * (2 / (2 * size + len(SYM6) - 1)) - 1


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the content of images (N, C, H, H) by pixel coordinate matrices (N, 3, 3) on the CPU; differentiable twice in `images`.

    Supersample by 2 with the sym6 low-pass filter, sample bilinearly with reflected borders, low-pass and reduce (appendix B).
    """
    size = images.shape[-1]
    up, down = resampling_matrices(size, images.dtype, images.device)
    grid = sampling_grid(matrices, size, images.dtype, images.device)
    moved = F.grid_sample(up @ images @ up.T, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return down @ moved @ down.T


def turn(images: Tensor, x_flip: Tensor, quarter_turns: Tensor) -> Tensor:
    """Mirror images (N, C, H, H) left-right where `x_flip` (N,), then turn them anticlockwise by `quarter_turns` (N,) x 90 degrees.

    Whole pixels change places, so these need no resampling and stay out of the warp.
    """
    steps: tuple[tuple[Tensor, Callable[[Tensor], Tensor]], ...] = (
        (x_flip, lambda x: x.flip(3)),
        (quarter_turns % 4 >= 2, lambda x: x.flip(2, 3)),
        (quarter_turns % 2 == 1, lambda x: x.rot90(1, (2, 3))),
    )
    for where, change in steps:
        if where.any():
            images = torch.where(where.to(images.device)[:, None, None, None], change(images), images)
    return images


def recolour(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply RGB matrices (N, 4, 4) to every three channels of images (N, 3 * T, H, W)."""
    matrices = matrices.to(images.device, images.dtype)[:, None]
    pixels = images.unflatten(1, (-1, 3)).flatten(3)
    return (matrices[..., :3, :3] @ pixels + matrices[..., :3, 3:]).reshape(images.shape)


def augment(images: Tensor, parameters: TransformParameters) -> Tensor:
    """Transform images (N, 3 * T, H, H) by given parameters; samples with neutral ones come out bit for bit."""
    images = turn(images, parameters.x_flip, parameters.quarter_turns)
    matrices = warp_matrix(parameters)
    moved = (matrices != torch.eye(3, dtype=matrices.dtype)).flatten(1).any(1).nonzero()[:, 0]
    if len(moved):
        index = moved.to(images.device)
        images = images.index_copy(0, index, warp(images[index], matrices[moved]))
    matrices = colour_matrix(parameters)
    if (matrices != torch.eye(4, dtype=matrices.dtype)).any():
        images = recolour(images, matrices)
    return images


class AugmentPipe(nn.Module):
    """Random transforms in front of the discriminator, each with probability `p` (a buffer, so that checkpoints and copies carry it)."""

    p: Tensor

    def __init__(self, p: float = 0.0, transforms: Collection[str] = TRANSFORMS) -> None:
        """Start with probability `p` in [0, 1]; `transforms` names those that may happen (fields of TransformParameters).

        Raises:
            ValueError: for names of transforms that do not exist.
        """
        super().__init__()
        unknown = sorted(set(transforms) - TRANSFORMS)
        if unknown:
            raise ValueError(f"unknown transform {unknown[0]!r}; known are {', '.join(sorted(TRANSFORMS))}")
        self.transforms = frozenset(transforms)
        self.register_buffer("p", torch.tensor(float(p)))

    def forward(self, images: Tensor) -> Tensor:
        """Augment images (N, C, H, H), C = 3, or 6 with two RGB images under one transform; at p = 0 the very input is returned.

        Raises:
            ValueError: for other shapes.
        """
        if images.ndim != 4 or images.shape[1] % 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"expected images of shape (N, 3 * T, H, H), found {tuple(images.shape)}")
        p = min(float(self.p), 1.0)
        if p <= 0:
            return images
        return augment(images, draw_parameters(len(images), images.shape[-1], p, self.transforms))


# ---------------------------------------------------------------------------------------------------------------------
# Adaptation


class AdaptiveProbability:
    """Sets an AugmentPipe's p as the settings say; with `ada`, from the share of real images that D takes for real (section 3, r_t).

    Call `observe` with every batch of D(real) and `end_batch` once after each batch.
    """

    def __init__(self, pipe: AugmentPipe, config: AugmentConfig) -> None:
        """Give `pipe` the probability that `config` starts with (none without augmentation).

        Raises:
            UserError: for settings out of range.
        """
        check_settings(config)
        self.pipe, self.config = pipe, config
        self.sums = torch.zeros(2)  # of sign(D(real)), of their number, since the last adjustment, over all processes
        self.seen = torch.zeros(2)  # the same of this process in this batch
        self.images = 0  # since the last adjustment
        self.batches = 0
        pipe.p.fill_(0.0 if config.mode == "noaug" else config.p)

    def observe(self, real_logits: Tensor) -> None:
        """Take note of D's logits (any shape) for augmented real images."""
        if self.config.mode == "ada":
            signs = real_logits.detach().float().sign()
            self.seen = self.seen.to(signs.device) + torch.stack([signs.sum(), signs.new_tensor(float(signs.numel()))])

    def end_batch(self, batch_size: int, reduce: Callable[[Tensor], Any] | None = None) -> None:
        """Count a batch of `batch_size` images (of all processes together); every `interval` batches move p one step, within [0, 1].

        Args:
            batch_size: images, a fixed number a batch.
            reduce: adds a tensor in place over all processes; none = there is one process.
        """
        if self.config.mode != "ada":
            return
        self.images += batch_size
        self.batches += 1
        if reduce is not None:
            reduce(self.seen)
        self.sums = self.sums.to(self.seen.device) + self.seen
        self.seen = torch.zeros_like(self.seen)
        if self.batches < self.config.interval:
            return
        sign_sum, count = self.sums.tolist()
        if count:
            excess = sign_sum / count - self.config.target
            step = self.images / (self.config.kimg * 1000)
            self.pipe.p.add_(math.copysign(step, excess) if excess else 0.0).clamp_(0, 1)
        self.sums = torch.zeros_like(self.sums)
        self.images = self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, p included, as plain numbers."""
        return {"p": float(self.pipe.p), "sums": self.sums.tolist(), "images": self.images, "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; sets the pipe's p too."""
        self.pipe.p.fill_(state["p"])
        self.sums = torch.tensor(state["sums"], device=self.sums.device)
        self.images, self.batches = int(state["images"]), int(state["batches"])


def check_settings(config: AugmentConfig) -> None:
    """Raise a UserError for augmentation settings out of range."""
    problems = (
        (not 0 <= config.p <= 1, f"augment.p is {config.p}; choose a probability from 0 to 1"),
        (not -1 <= config.target <= 1, f"augment.target is {config.target}; a mean sign lies from -1 to 1"),
        (config.interval < 1, f"augment.interval is {config.interval}; choose at least 1 batch"),
        (not config.kimg > 0, f"augment.kimg is {config.kimg}; choose a positive number of thousands of images"),
    )
    for wrong, message in problems:
        if wrong:
            raise UserError(message)
