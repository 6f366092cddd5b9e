"""Losses, regularisers and their schedules (EG3D, section 4 and supplement; Karras et al. 2020;
Mescheder et al. 2018).

Everything here works on one micro-batch and returns per-sample values or scalars; nothing steps an
optimiser. Schedules are functions of the number of real images shown so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops.upfirdn2d import filter2d
from torch_utils.sample_random import rand, randn
from training.config.settings import Alpha, Config, TrainingConfig
from training.config.sizes import cosine_fade, fade, rendering_resolution
from training.gan.augment import AugmentPipe
from training.networks.generator import Generator, GeneratorOutput
from training.networks.layers import resize_image
from training.rendering.compositing import lay_over

REFERENCE_BATCH = 32  # the published schedules that scale with the batch are given for this one


class Schedule(NamedTuple):
    """What varies in the course of a run, at one moment."""

    resolution: int  # of the neural rendering, pixels
    blur_sigma: float  # of what the discriminator sees, pixels
    swap_probability: float  # of conditioning the mapping on another sample's camera
    learning_rate: float = 1.0  # factor on both learning rates
    penalty: float = 1.0  # factor on the penalties on the discriminator's slope


class Pictures(NamedTuple):
    """What the discriminator sees of each sample."""

    image: Tensor  # (N, 3, resolution, resolution); with alpha as a fourth channel where D sees it
    image_raw: Tensor  # (N, 3, r, r) or (N, 4, r, r)


def schedule_at(config: Config, images: int) -> Schedule:
    """The schedule's values after `images` real images."""
    training = config.training
    blur_kimg = (
        training.batch * 200 / REFERENCE_BATCH
        if training.blur_fade_kimg is None
        else training.blur_fade_kimg
    )
    cosine_kimg = training.kimg if training.schedule_kimg is None else training.schedule_kimg
    return Schedule(
        resolution=rendering_resolution(config, images),
        blur_sigma=fade(training.blur_sigma, 0, images, blur_kimg),
        swap_probability=fade(
            training.swap_start, training.swap_final, images, training.swap_fade_kimg
        ),
        learning_rate=cosine_fade(training.lr_final, images, cosine_kimg),
        penalty=cosine_fade(training.gamma_final, images, cosine_kimg),
    )


def ema_decay(config: TrainingConfig, images: int) -> float:
    """Factor on the averaged weights for one batch: half-life in images, bounded by a part of the
    images seen.
    """
    half_life = 1000 * (
        config.batch * 10 / REFERENCE_BATCH if config.ema_kimg is None else config.ema_kimg
    )
    if config.ema_rampup is not None:
        half_life = min(half_life, images * config.ema_rampup)
    return 0.5 ** (config.batch / max(half_life, 1e-8))


def swap_cameras(c: Tensor, probability: float, swapped_c: Tensor | None = None) -> Tensor:
    """Cameras (N, 25) to condition the mapping on: each sample's own, or with `probability` its
    neighbour's.

    `swapped_c` (N, 25) are those of a larger batch that `c` is a part of; None = the samples of
    `c` are each other's.
    """
    if probability <= 0:
        return c
    swap = rand(c.shape[0], 1, device=c.device) < probability
    return torch.where(swap, c.roll(1, dims=0) if swapped_c is None else swapped_c, c)


def blur_kernel(sigma: float, device: torch.device | None = None) -> Tensor | None:
    """Separable Gaussian (k,) with weight 2^-((x/sigma)^2) up to radius floor(3 sigma); None where
    that leaves one tap.
    """
    radius = math.floor(3 * sigma)
    if radius < 1:
        return None
    taps = torch.arange(-radius, radius + 1, device=device).div(sigma).square().neg().exp2()
    return taps / taps.sum()


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, C, H, W) with zeros outside."""
    kernel = blur_kernel(sigma, images.device)
    return images if kernel is None else filter2d(images, kernel)


def augment_pictures(augment: AugmentPipe, pictures: Pictures) -> Pictures:
    """Augmented pictures: image and raw, resized up to it, go through one transform as six
    channels; raw is resized back.
    """
    if augment.is_off():
        return pictures
    image, raw = pictures
    both = augment(torch.cat([image, resize_image(raw, image.shape[-1])], dim=1))
    return Pictures(both[:, :3], resize_image(both[:, 3:], raw.shape[-1]))


def backgrounds(mode: Alpha, count: int, device: torch.device) -> Tensor | None:
    """Colours (count, 3) in [-1, 1] that samples are laid over, reals and fakes alike: random ones,
    or black where D sees alpha; None where there is no alpha.
    """
    if mode == "ignore":
        return None
    if mode == "judge":
        return torch.full((count, 3), -1.0, device=device)
    return rand(count, 3, device=device) * 2 - 1


def with_alpha(image: Tensor, alpha: Tensor) -> Tensor:
    """`image` (N, 3, H, W) and `alpha` (N, 1, h, w) in [0, 1] as D sees them: (N, 4, H, W)."""
    return torch.cat([image, resize_image(alpha, image.shape[-1]) * 2 - 1], dim=1)


def real_pictures(
    images: Tensor, schedule: Schedule, background: Tensor | None = None, judges_alpha: bool = False
) -> Pictures:
    """Real images (N, 3, H, W) and their version at the rendering resolution, both blurred; with
    straight alpha (N, 4, H, W) they are laid over `background` (N, 3).
    """
    if background is not None:
        alpha = (images[:, 3:] + 1) / 2
        images = lay_over((images[:, :3] + 1) * alpha - 1, alpha, background)
        images = with_alpha(images, alpha) if judges_alpha else images
    raw = resize_image(images, schedule.resolution)
    return Pictures(blur(images, schedule.blur_sigma), blur(raw, schedule.blur_sigma))


def fake_pictures(
    fakes: GeneratorOutput, schedule: Schedule, judges_alpha: bool = False
) -> Pictures:
    """Generated pictures; only the final image is blurred."""
    image, raw = fakes.image, fakes.image_raw
    if judges_alpha:
        image, raw = with_alpha(image, fakes.alpha), with_alpha(raw, fakes.alpha)
    return Pictures(blur(image, schedule.blur_sigma), raw)


def generate(
    G: Generator,
    z: Tensor,
    c: Tensor,
    schedule: Schedule,
    update_w_avg: bool = False,
    swapped_c: Tensor | None = None,
    background: Tensor | None = None,
) -> GeneratorOutput:
    """Training fakes of z (N, z_dim) seen from cameras c (N, 25): random noise, sample offsets and
    pose swapping; over `background` (N, 3) for models with alpha.
    """
    ws = G.mapping(
        z, swap_cameras(c, schedule.swap_probability, swapped_c), update_w_avg=update_w_avg
    )
    return G.synthesis(
        ws,
        c,
        neural_rendering_resolution=schedule.resolution,
        noise_mode="random",
        deterministic=False,
        background=background,
    )


# --------------------------------------------------------------------------------------------------
# Adversarial losses


class Judged(NamedTuple):
    """Pictures as D saw them, and what it made of them."""

    pictures: Pictures
    logits: Tensor  # (N, 1), higher = more real


class GanLoss(NamedTuple):
    """The losses of both networks: from the fakes and the reals of a micro-batch to values per
    sample (N, 1).

    `is_paired`: the generator's loss needs the reals too, and the i-th fake is seen from the i-th
    real picture's camera. Otherwise the generator's loss gets None for the reals.
    """

    generator: Callable[[Judged, Any], Tensor]
    discriminator: Callable[[Judged, Judged], Tensor]
    is_paired: bool = False


def loss_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logits): how far logits are from saying 'real'."""
    return F.softplus(-logits)


def loss_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logits)): how far logits are from saying 'fake'."""
    return F.softplus(logits)


def logistic_generator(fake: Judged, _real: Judged | None) -> Tensor:
    """Non-saturating logistic loss (Goodfellow et al. 2014)."""
    return loss_real(fake.logits)


def logistic_discriminator(fake: Judged, real: Judged) -> Tensor:
    """Logistic loss of both kinds of pictures (Goodfellow et al. 2014)."""
    return loss_fake(fake.logits) + loss_real(real.logits)


def relativistic_generator(fake: Judged, real: Judged) -> Tensor:
    """-log sigmoid(D(fake) - D(real)) of pairs (Huang et al. 2024, section 2)."""
    return loss_real(fake.logits - real.logits)


def relativistic_discriminator(fake: Judged, real: Judged) -> Tensor:
    """-log sigmoid(D(real) - D(fake)) of pairs (Huang et al. 2024, section 2)."""
    return loss_fake(fake.logits - real.logits)


GAN_LOSSES: dict[str, GanLoss] = {
    "logistic": GanLoss(logistic_generator, logistic_discriminator),
    "relativistic": GanLoss(relativistic_generator, relativistic_discriminator, is_paired=True),
}
"""By name in `training.loss`; a loss of your own is one more entry."""


# --------------------------------------------------------------------------------------------------
# Regularisers


def slope_penalty(
    judge: Callable[[Pictures], Tensor], pictures: Pictures, options: TrainingConfig
) -> Tensor:
    """Squared slope (N,) of D at both pictures of each sample: R1 at reals (Mescheder et al. 2018),
    R2 at fakes.

    Args:
        judge: Pictures to logits (N, 1).
    """
    if options.penalty == "finite_difference":
        return squared_difference(judge, pictures, options.penalty_step)
    pictures = Pictures(*(value.detach().requires_grad_() for value in pictures))
    return r1_penalty(judge(pictures), pictures)


def r1_penalty(logits: Tensor, pictures: Pictures) -> Tensor:
    """Squared gradient (N,) of logits (N, 1) with respect to both pictures of each sample, which
    must require gradients; D may look at one alone.
    """
    gradients = torch.autograd.grad(logits.sum(), pictures, create_graph=True, allow_unused=True)
    seen = [g for g in gradients if g is not None]
    return torch.stack([g.square().sum(dim=(1, 2, 3)) for g in seen]).sum(dim=0)


def squared_difference(
    judge: Callable[[Pictures], Tensor], pictures: Pictures, step: float
) -> Tensor:
    """Estimate (N,) of the squared gradient from one random direction n, without second derivatives
    (Lin et al. 2025, Seaweed APT, section 3.4): ((D(x + step n) - D(x)) / step)^2.

    n is normal with unit deviation, so that the mean over n tends to the squared gradient as `step`
    tends to 0.
    """
    moved = Pictures(*(x + step * randn(*x.shape, device=x.device) for x in pictures))
    return ((judge(moved) - judge(pictures)) / step).square().sum(dim=1)


def density_regularisation(
    G: Generator,
    z: Tensor,
    c: Tensor,
    schedule: Schedule,
    options: TrainingConfig,
    swapped_c: Tensor | None = None,
) -> Tensor:
    """Mean difference of raw density between nearby points, uniform in a cube: noise and floaters
    cost (EG3D, supplement).

    Lengths are in box sides, so that a scene in any unit is regularised alike; in the published
    ones the box has a side of 1.
    """
    ws = G.mapping(z, swap_cameras(c, schedule.swap_probability, swapped_c))
    points, device = options.density_reg_points, z.device
    here = (rand(z.shape[0], points, 3, device=device) * 2 - 1) * options.density_reg_extent
    there = here + randn(*here.shape, device=device) * options.density_reg_distance
    where = torch.cat([here, there], dim=1) * G.rendering.box_warp
    density = G.query_density(where, G.planes(ws, noise_mode="random"))
    first, second = density.chunk(2, dim=1)
    return (first - second).abs().mean()
