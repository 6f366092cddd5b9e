"""Pictures of a run at its snapshots: the same latents and cameras every time, so that progress
shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from media.pictures.grids import (
    Pictures,
    enlarge,
    identity_grid,
    save_png,
    shade_depth,
    tile,
    to_pictures,
)
from training.run.saving import kimg_name

if TYPE_CHECKING:
    from training.run.loop import SnapshotState

COLUMNS, ROWS = 8, 4
STRIP_IDENTITIES, STRIP_VIEWS = 4, 5
RENDER_BATCH = 8


def save_pictures(state: SnapshotState) -> None:
    """Write reals.png at the start; at every snapshot fakes, raw, depth and views over the range of
    yaw, to files and to TensorBoard.
    """
    if state.checkpoint is None:
        show(state, "reals", real_grid(state), "")
    name = f"-{kimg_name(state.trainer.progress.images)}"
    for kind, picture in fake_grids(state).items():
        show(state, kind, picture, name)
    show(state, "yaw", yaw_grid(state), name)


def show(state: SnapshotState, kind: str, picture: Pictures, suffix: str) -> None:
    """Write one picture to the run folder and to TensorBoard."""
    save_png(state.run_dir / f"{kind}{suffix}.png", picture)
    state.writer.add_image(kind, picture, state.trainer.progress.images, dataformats="HWC")


def real_grid(state: SnapshotState) -> Pictures:
    """Some of the training pictures."""
    count = min(len(state.dataset), COLUMNS * ROWS)
    chosen = np.random.RandomState(0).permutation(len(state.dataset))[:count]
    pictures = state.dataset.read(chosen)[0].permute(0, 2, 3, 1).numpy()
    columns = min(COLUMNS, count)
    return tile(pictures[: count // columns * columns], count // columns, columns)


def fixed_latents(state: SnapshotState, count: int) -> torch.Tensor:
    """The first `count` latents that snapshots of this run show."""
    z = np.random.RandomState(0).randn(COLUMNS * ROWS, state.trainer.G_ema.z_dim)[:count]
    return torch.from_numpy(z).float().to(state.trainer.device)


def render_batch(state: SnapshotState) -> int:
    """Pictures made at once: no more than training handles, so that pictures never need more memory
    than it.
    """
    options = state.trainer.config.training
    return min(RENDER_BATCH, options.batch_gpu or options.batch)


@torch.no_grad()
def fake_grids(state: SnapshotState) -> dict[str, Pictures]:
    """Averaged generator: final image, raw rendering and depth of fixed latents from fixed cameras
    of the data.
    """
    generator, labels = state.trainer.G_ema, state.dataset.labels
    count = COLUMNS * ROWS
    cameras = labels[np.random.RandomState(1).randint(len(labels), size=count)].to(
        state.trainer.device
    )
    outputs = []
    batch = render_batch(state)
    for z, c in zip(fixed_latents(state, count).split(batch), cameras.split(batch), strict=True):
        outputs.append(
            [
                value.float().cpu()
                for value in generator(z, c, neural_rendering_resolution=state.resolution)
            ]
        )
    image, raw, depth, alpha = (torch.cat(values) for values in zip(*outputs, strict=True))
    pictures = {
        "fakes": to_pictures(image),
        "raw": to_pictures(raw),
        "depth": shade_depth(depth, alpha),
    }
    return {
        name: tile(enlarge(picture, image.shape[-1]), ROWS, COLUMNS)
        for name, picture in pictures.items()
    }


@torch.no_grad()
def yaw_grid(state: SnapshotState) -> Pictures:
    """Identities as they turn: colour, raw and depth over the data's range of yaw."""
    generator = state.trainer.G_ema
    z = fixed_latents(state, STRIP_IDENTITIES)
    ws = generator.mapping(z, state.cameras.frontal_label().to(z.device).expand(len(z), -1))
    cameras = state.cameras
    labels = cameras.label(cameras.default_yaws(STRIP_VIEWS), cameras.pitch)
    return identity_grid(generator, ws, labels, state.resolution, render_batch(state))
