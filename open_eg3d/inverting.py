"""From pictures to an identity of a generator."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from metrics.perceptual import load_perceptual
from open_eg3d.identity_files import weights_content
from training.checkpoints.torch_archive import read_torch_archive
from training.inversion.encoder import EncoderSettings, EncoderTrainer
from training.inversion.inversion import Inversion, InversionSettings, Method, invert_pictures
from training.inversion.latents import OnStep
from training.inversion.objective import Objective, Perceptual, gradient_distance
from training.networks.arguments import LABEL, check_tensor
from training.networks.generator import Generator

SAVE_SECONDS = 60.0
Picture = Image.Image | NDArray[np.uint8] | Tensor


def invert(
    generator: Generator,
    picture: Picture | Sequence[Picture],
    camera: Tensor | Sequence[Tensor | None] | None = None,
    *,
    method: Method = "auto",
    mask: Tensor | None = None,
    optimise_pose: bool = False,
    seconds: float | None = None,
    lpips_weights: Sequence[str | Path] = (),
    perceptual: tuple[Perceptual, str] | None = None,
    settings: InversionSettings | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Find the identity in a picture, or in several pictures of one person.

    Args:
        picture: Square, cut out as the training pictures were: a PIL image (transparent parts
            count nothing), uint8 (H, W, 3), or a tensor (3, H, W) in [-1, 1]; or a list of these.
        camera: Label (25,) or labels (K, 25); None, or None in a list of K = not known: the
            generator's encoder or several starts over the range of its cameras look for it.
        method: w, w+ or pti, each nearer to the picture than the one before; encoder or
            encoder+pti where the file holds an encoder; auto = the best for the seconds.
        mask: (H, W) or (K, H, W), 1 where the picture counts.
        optimise_pose: Optimise given cameras too; the methods of an encoder ask it for them.
        seconds: Time for it all; None = as many steps as the settings say.
        lpips_weights: Files of LPIPS' weights; without them the features of EfficientNet-Lite0
            where they are installed, else differences of neighbouring pixels.
        perceptual: Of `choose_perceptual`, for programs that call often; None = it is called here.
        settings: Of the optimisation; `method` and `seconds` take the place of its own.
        on_step: Told the phase, how much of it is done (0 to 1), and the loss.

    Returns:
        Latents, cameras, losses, and the generator that shows them, with pti a tuned copy.

    Raises:
        UserError: for pictures, masks or cameras of the wrong kind.
    """
    resolution, device = generator.config.resolution, next(generator.parameters()).device
    perceptual = perceptual or choose_perceptual(lpips_weights, device)
    objective = make_objective(picture, mask, resolution, perceptual).to(device)
    if isinstance(camera, Tensor):
        camera = camera[None] if camera.dim() == 1 else camera
        check_tensor("camera", camera, len(objective), 25, hint=LABEL)
    chosen = dataclasses.replace(settings or InversionSettings(), method=method, seconds=seconds)
    return invert_pictures(
        generator,
        objective,
        camera,
        chosen,
        optimise_pose=optimise_pose,
        on_step=on_step or (lambda *_: None),
    )


def train_encoder(
    generator: Generator,
    state: Path,
    settings: EncoderSettings | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> None:
    """Train an encoder of the generator's own samples, and give it to the generator.

    Args:
        state: A file from which a call that was ended goes on; written every minute.
        on_step: Told the number of steps done and the losses of the last.

    Raises:
        UserError: if the file is of another network or training.
    """
    trainer = EncoderTrainer(generator, settings or EncoderSettings())
    network = weights_content(generator)
    if state.exists():
        known = read_torch_archive(state)
        if not isinstance(known, dict) or known.get("network") != network:
            raise UserError(f"{state} is of another network; remove it")
        trainer.load(known)
    saved = time.monotonic()
    while trainer.step < trainer.settings.steps:
        losses = trainer.train_step()
        on_step(trainer.step, losses)
        if time.monotonic() - saved > SAVE_SECONDS or trainer.step == trainer.settings.steps:
            with atomic_write(state) as file:
                torch.save({"network": network, **trainer.state()}, file)
            saved = time.monotonic()
    generator.encoder = {key: one.cpu() for key, one in trainer.encoder.state_dict().items()}


def choose_perceptual(
    lpips_weights: Sequence[str | Path], device: torch.device
) -> tuple[Perceptual, str]:
    """The perceptual distance for what is at hand, and a line that says which."""
    distance, name = load_perceptual(lpips_weights, device)
    if distance is None:
        hint = "--lpips-weights FILE, or pip install 'open-eg3d[lite0]', would be better"
        return gradient_distance, f"Compared by differences of neighbouring pixels; {hint}"
    return distance, f"Compared by {name}"


def make_objective(
    picture: Picture | Sequence[Picture],
    mask: Tensor | None,
    resolution: int,
    perceptual: tuple[Perceptual, str],
) -> Objective:
    """The objective of pictures and masks, at the generator's resolution.

    Raises:
        UserError: for pictures or masks of the wrong kind.
    """
    is_many = isinstance(picture, (list, tuple))
    pictures = list(picture) if is_many else [picture]  # type: ignore[arg-type]
    if not pictures:
        raise UserError("no picture is given")
    parts = [_to_tensors(one, resolution) for one in pictures]
    images = torch.stack([image for image, _ in parts])
    alphas = torch.stack([alpha for _, alpha in parts])
    if mask is not None:
        masks = mask[None] if isinstance(mask, Tensor) and mask.dim() == 2 else mask
        check_tensor("mask", masks, len(images), "H", "W")
        alphas = alphas * _resize(masks[:, None].float(), resolution).clamp(0, 1)
    if (alphas.mean((1, 2, 3)) == 0).any():
        raise UserError("the mask leaves nothing of a picture")
    return Objective(images, None if bool((alphas == 1).all()) else alphas, perceptual[0])


def _to_tensors(picture: Any, resolution: int) -> tuple[Tensor, Tensor]:
    """A picture (3, R, R) in [-1, 1] and its alpha (1, R, R)."""
    if isinstance(picture, Image.Image):
        has_alpha = "A" in picture.getbands() or "transparency" in picture.info
        picture = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3:
        picture = torch.from_numpy(picture.copy()).movedim(-1, 0).float()
        color = picture[:3] / 127.5 - 1
        picture = torch.cat([color, picture[3:] / 255])
    is_right = isinstance(picture, Tensor) and picture.dim() == 3 and len(picture) in (3, 4)
    if not is_right or not picture.is_floating_point():
        raise UserError(
            "a picture is a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W) in [-1, 1]"
        )
    if picture.shape[1] != picture.shape[2]:
        height, width = picture.shape[1:]
        raise UserError(f"a picture must be square, not {width} x {height}; cut out the head")
    resized = _resize(picture[None].float(), resolution)[0]
    alpha = resized[3:].clamp(0, 1) if len(resized) == 4 else torch.ones_like(resized[:1])
    return resized[:3].clamp(-1, 1), alpha


def _resize(images: Tensor, resolution: int) -> Tensor:
    if images.shape[-1] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bicubic", antialias=True)
