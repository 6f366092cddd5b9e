"""Pictures for people: identities seen from several angles, in colour, before super-resolution and
as depth.

Pictures are uint8 arrays (..., H, W, 3). Depth is grey: the nearest point of the object white, the
farthest dark, the background black; one scale for all views that are rendered together, so that the
pictures of a row compare.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dnnlib.files import atomic_write
from media import Cameras, ViewModel
from metrics.sampling import to_pixels
from metrics.views import OPAQUE

Pictures = NDArray[np.uint8]

ROWS = ("image", "raw", "depth")
FARTHEST_GREY = 0.25  # so that the object's far end differs from the background's black
# per cent of the depths at either end that may saturate: a few floaters must not flatten the object
OUTLIERS = 1.0


def to_pictures(images: Tensor) -> Pictures:
    """Images (..., 3, H, W) in [-1, 1] as (..., H, W, 3): see `to_pixels`."""
    return to_pixels(images.detach()).movedim(-3, -1).cpu().numpy()


def tile(images: Pictures, rows: int, columns: int) -> Pictures:
    """One picture (rows * H, columns * W, 3) of rows * columns pictures (K, H, W, 3), row by row.

    Raises:
        ValueError: if K is not rows * columns.
    """
    count, height, width, channels = images.shape
    if count != rows * columns:
        raise ValueError(f"{count} pictures do not fill {rows} rows of {columns}")
    blocks = images.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(rows * height, columns * width, channels))


def save_png(path: str | os.PathLike[str], picture: Pictures) -> None:
    """Write a picture (H, W, 3) as PNG, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    with atomic_write(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def depth_limits(depth: Tensor, alpha: Tensor) -> tuple[float, float] | None:
    """Nearest and farthest depth of the opaque pixels, less `OUTLIERS`; none where there is no such
    pixel. Any shape.
    """
    solid = (alpha > OPAQUE) & depth.isfinite()
    if not solid.any():
        return None
    near, far = np.percentile(depth[solid].numpy(), (OUTLIERS, 100 - OUTLIERS))
    return float(near), float(far)


def shade_depth(
    depth: Tensor, alpha: Tensor, limits: tuple[float, float] | None = None
) -> Pictures:
    """Grey pictures (K, H, W, 3) of depths (K, 1, H, W), world units, and alphas (K, 1, H, W) in
    [0, 1].

    The scale runs over `limits`, by default over the depths of the opaque pixels of all K views.
    """
    depth, alpha = depth.detach().float().cpu(), alpha.detach().float().cpu()
    limits = limits or depth_limits(depth, alpha)
    if limits is None:
        return to_pictures(torch.full_like(depth, -1).expand(-1, 3, -1, -1))
    near, far = limits
    closeness = ((far - depth) / max(far - near, 1e-6)).clamp(0, 1)
    solid = (alpha > OPAQUE) & depth.isfinite()
    grey = torch.where(solid, FARTHEST_GREY + (1 - FARTHEST_GREY) * closeness, 0.0)
    return to_pictures((grey * 2 - 1).expand(-1, 3, -1, -1))


def enlarge(images: Pictures, size: int) -> Pictures:
    """Pictures (K, h, w, 3) as (K, size, size, 3); each new pixel repeats the old pixel its centre
    falls on.
    """
    rows, columns = (
        ((np.arange(size) + 0.5) * side / size).astype(int) for side in images.shape[1:3]
    )
    return images[:, rows[:, None], columns]


@torch.no_grad()
def render_views(
    generator: ViewModel,
    ws: Tensor,
    labels: Tensor,
    neural_rendering_resolution: int | None = None,
    batch: int = 4,
) -> dict[str, Pictures]:
    """Render one identity from many cameras; the planes are computed once.

    Args:
        ws: (1, num_ws, w_dim).
        labels: (K, 25) cameras.
        neural_rendering_resolution: Pixels a side of the rendering; none = the generator's own.
        batch: Cameras rendered at once.

    Returns:
        `image`, `raw` and `depth`, each (K, res, res, 3); the latter two enlarged to the size of
        the first.
    """
    planes = generator.planes(ws, noise_mode="const")
    outputs: list[Any] = []
    for c in labels.to(ws.device).split(batch):
        views = (len(c), *(-1 for _ in planes.shape[1:]))
        out = generator.render(
            planes.expand(views),
            ws.expand(len(c), -1, -1),
            c,
            neural_rendering_resolution,
            deterministic=True,
        )
        outputs.append(
            (
                to_pictures(out.image),
                to_pictures(out.image_raw),
                out.image_depth.cpu(),
                out.alpha.cpu(),
            )
        )
    image, raw, depth, alpha = zip(*outputs, strict=True)
    pictures = {
        "image": np.concatenate(image),
        "raw": np.concatenate(raw),
        "depth": shade_depth(torch.cat(depth), torch.cat(alpha)),
    }
    return {name: enlarge(picture, image[0].shape[1]) for name, picture in pictures.items()}


def seed_latent(seed: int, z_dim: int) -> Tensor:
    """The z (1, z_dim) that a seed stands for."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()


def orbit_labels(cameras: Cameras, yaws: Sequence[float], pitch: float) -> Tensor:
    """Camera labels (K, 25) on the data's orbit at K yaws and one pitch, radians."""
    return torch.stack([cameras.label(yaw, pitch) for yaw in yaws])


def camera_grid(cameras: Cameras, yaws: int = 9, pitches: int = 3) -> Tensor:
    """Labels (yaws * pitches, 25) that cover the data's range of yaw and pitch."""
    yaw_values = np.linspace(*cameras.yaw_range, yaws).tolist()
    return torch.cat(
        [
            orbit_labels(cameras, yaw_values, pitch)
            for pitch in np.linspace(*cameras.pitch_range, pitches)
        ]
    )


def yaw_views(
    generator: ViewModel,
    ws: Tensor,
    cameras: Cameras,
    yaws: Sequence[float],
    pitch: float,
    neural_rendering_resolution: int | None = None,
    batch: int = 4,
) -> dict[str, Pictures]:
    """One identity ws (1, num_ws, w_dim) from K yaws (radians) at one pitch: see `render_views`."""
    return render_views(
        generator, ws, orbit_labels(cameras, yaws, pitch), neural_rendering_resolution, batch
    )


def stack_rows(strip: dict[str, Pictures], rows: Sequence[str] = ("image",)) -> Pictures:
    """One picture of a strip: views side by side, the named kinds of pictures (of `ROWS`) in rows."""
    views = len(strip[rows[0]])
    return tile(np.concatenate([strip[name] for name in rows]), len(rows), views)


def identity_grid(
    generator: ViewModel,
    ws: Tensor,
    cameras: Cameras,
    yaws: Sequence[float],
    pitch: float,
    neural_rendering_resolution: int | None = None,
    batch: int = 4,
) -> Pictures:
    """One picture of N identities ws (N, num_ws, w_dim): a row each; blocks of colour, raw and
    depth side by side, a column a yaw.
    """
    rows = []
    for one in ws.split(1):
        strip = yaw_views(generator, one, cameras, yaws, pitch, neural_rendering_resolution, batch)
        views = np.concatenate([strip[name] for name in ROWS])
        rows.append(tile(views, 1, len(views)))
    return np.concatenate(rows)
