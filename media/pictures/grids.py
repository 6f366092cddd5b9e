"""Grids of pictures: identities seen from several angles, in colour, before super-resolution, as
depth and as normals.

Pictures are uint8 arrays (..., H, W, 3). Depth is grey: the nearest point of the object white, the
farthest dark, the background black; one scale for all views that are rendered together, so that the
pictures of a row compare. Normals are red to the right, green up, blue towards the camera.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from dnnlib.files import atomic_write
from media import DensityModel, PictureModel, RenderOutput
from media.pictures.normals import in_camera, surface_normals
from metrics.sampling import to_pixels
from metrics.views import OPAQUE
from training.cameras import cameras_of
from training.networks.generator import Generator

Pictures = NDArray[np.uint8]

PANELS = ("image", "raw", "depth", "normals")
ROWS = PANELS[:3]
LEAST_SPAN = 1e-6  # of depths, in farthest ones: what is less is rounding
LARGE_PIXELS = 2_000_000  # pictures beyond are JPEG in a page, or it would take minutes to open
JPEG_QUALITY = 92
FARTHEST_GREY = 0.15  # so that the object's far end differs from the background's black
# Per cent of the depths that may saturate at the near and the far end: a few floaters, or the small
# part of a neck that leads away, must not take the contrast from a face.
OUTLIERS = (1.0, 5.0)
CONTRAST = 2.0  # exponent of the grey: most of a surface is near, and there small steps should show


def to_pictures(images: Tensor) -> Pictures:
    """Images (..., 3, H, W) in [-1, 1] as (..., H, W, 3): see `to_pixels`."""
    return to_pixels(images.detach()).movedim(-3, -1).cpu().numpy()


def tile(images: Pictures, rows: int, columns: int) -> Pictures:
    """One picture (rows * H, columns * W, 3) of rows * columns pictures (K, H, W, 3), row by row.

    Raises:
        ValueError: if K is not rows * columns.
    """
    if len(images) != rows * columns:
        raise ValueError(f"{len(images)} pictures do not fill {rows} rows of {columns}")
    grid = make_grid(torch.from_numpy(images).movedim(-1, 1), nrow=columns, padding=0)
    return np.ascontiguousarray(grid.movedim(0, -1).numpy())


def save_png(path: str | os.PathLike[str], picture: Pictures) -> None:
    """Write a picture (H, W, 3) as PNG, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    with atomic_write(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def data_uri(picture: Pictures) -> str:
    """A picture (H, W, 3), uint8, as an address that holds it: PNG, or JPEG where it is large."""
    kind, options = (
        ("jpeg", {"quality": JPEG_QUALITY})
        if picture.size > 3 * LARGE_PIXELS
        else ("png", {"optimize": True})
    )
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def depth_limits(depth: Tensor, alpha: Tensor) -> tuple[float, float] | None:
    """Nearest and farthest depth of the opaque pixels, less `OUTLIERS`; none where there is no such
    pixel. Any shape.
    """
    solid = (alpha > OPAQUE) & depth.isfinite()
    if not solid.any():
        return None
    near, far = np.percentile(depth[solid].numpy(), (OUTLIERS[0], 100 - OUTLIERS[1]))
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
    span = max(far - near, LEAST_SPAN * abs(far)) or 1.0
    closeness = ((far - depth) / span).clamp(0, 1)
    solid = (alpha > OPAQUE) & depth.isfinite()
    grey = torch.where(solid, FARTHEST_GREY + (1 - FARTHEST_GREY) * closeness**CONTRAST, 0.0)
    return to_pictures((grey * 2 - 1).expand(-1, 3, -1, -1))


def shade_normals(
    generator: DensityModel, planes: Tensor, c: Tensor, out: RenderOutput
) -> Pictures:
    """Pictures (N, r, r, 3) of the normals that cameras c (N, 25) see; black where nothing is."""
    normals = in_camera(surface_normals(generator, planes, c, out), c)
    return to_pictures(normals.where(out.alpha > OPAQUE, -1.0))


def enlarge(images: Pictures, size: int) -> Pictures:
    """Pictures (K, h, w, 3) as (K, size, size, 3); each new pixel repeats the old pixel in which
    its centre lies.
    """
    rows, columns = (
        ((np.arange(size) + 0.5) * side / size).astype(int) for side in images.shape[1:3]
    )
    return images[:, rows[:, None], columns]


@torch.no_grad()
def render_views(
    generator: PictureModel,
    ws: Tensor,
    labels: Tensor,
    neural_rendering_resolution: int | None = None,
    batch: int = 4,
    kinds: Sequence[str] = ROWS,
) -> dict[str, Pictures]:
    """Render one identity from many cameras; the planes are computed once.

    Args:
        ws: (1, num_ws, w_dim).
        labels: (K, 25) cameras.
        neural_rendering_resolution: Pixels per side of the rendering; none = the generator's own.
        batch: Cameras rendered at once.
        kinds: Of `PANELS`.

    Returns:
        By kind pictures (K, res, res, 3); what has fewer pixels than the final picture is enlarged
        to its size.
    """
    planes = generator.planes(ws, noise_mode="const")
    found: dict[str, list[Any]] = {name: [] for name in (*PANELS, "alpha")}
    for c in labels.to(ws.device).split(batch):
        views = planes.expand(len(c), *planes.shape[1:])
        out = generator.render(
            views, ws.expand(len(c), -1, -1), c, neural_rendering_resolution, deterministic=True
        )
        found["image"].append(to_pictures(out.image))
        found["raw"].append(to_pictures(out.image_raw))
        found["depth"].append(out.image_depth.cpu())
        found["alpha"].append(out.alpha.cpu())
        if "normals" in kinds:
            found["normals"].append(shade_normals(generator, views, c, out))
    depth = shade_depth(torch.cat(found.pop("depth")), torch.cat(found.pop("alpha")))
    size = found["image"][0].shape[1]
    pictures = {name: np.concatenate(values) for name, values in found.items() if values}
    return {kind: enlarge({**pictures, "depth": depth}[kind], size) for kind in kinds}


def seed_latent(seed: int, z_dim: int) -> Tensor:
    """The z (1, z_dim) of a seed."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()


@torch.no_grad()
def map_seed(
    generator: Generator,
    seed: int,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    conditioning: Tensor | None = None,
) -> Tensor:
    """Latents ws (1, num_ws, w_dim) of a seed, conditioned on a camera label (25,), None = the
    frontal pose, as everywhere where seeds are shown.
    """
    parameter = next(generator.parameters())
    c = cameras_of(generator).frontal_label() if conditioning is None else conditioning
    z = seed_latent(seed, generator.z_dim)
    return generator.mapping(
        z.to(parameter), c[None].to(parameter), truncation_psi, truncation_cutoff
    )


def stack_rows(views: dict[str, Pictures], rows: Sequence[str] = ("image",)) -> Pictures:
    """One picture of `render_views`: views side by side, the named kinds of pictures in rows."""
    return tile(np.concatenate([views[kind] for kind in rows]), len(rows), len(views[rows[0]]))


def identity_grid(
    generator: PictureModel,
    ws: Tensor,
    labels: Tensor,
    neural_rendering_resolution: int | None = None,
    batch: int = 4,
) -> Pictures:
    """One picture of N identities ws (N, num_ws, w_dim): a row each; blocks of colour, raw and
    depth side by side, one column per camera of labels (K, 25).
    """
    cells: list[Pictures] = []
    for one in ws.split(1):
        views = render_views(generator, one, labels, neural_rendering_resolution, batch)
        cells += views.values()
    return tile(np.concatenate(cells), len(ws), len(ROWS) * len(labels))
