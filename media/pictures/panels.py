"""One frame of one identity as panels: picture, rendering before super-resolution, depth, normals.

Depth has one scale for all frames of a video, so that nothing flickers as the camera moves. Normals
are those of the density's level surface where the ray ends, in the camera's axes: red to the
picture's right, green up, blue towards the camera.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from media import DensityModel, RenderOutput, ViewModel
from media.pictures.grids import Pictures, depth_limits, enlarge, shade_depth, to_pictures
from metrics.views import OPAQUE
from training.cameras import unpack_label
from training.rendering.rays import sample_rays

PANELS = ("image", "raw", "depth", "normals")
# of the differences that a gradient is made of, in texels of the planes: less shows the texels'
# edges
NORMAL_STEP = 2.0


class PictureModel(ViewModel, DensityModel, Protocol):
    """A scene that renders itself and tells its density."""


@torch.no_grad()
def render_panels(
    generator: PictureModel,
    planes: Tensor,
    ws: Tensor,
    c: Tensor,
    kinds: Sequence[str],
    neural_rendering_resolution: int | None = None,
    limits: tuple[float, float] | None = None,
) -> dict[str, Pictures]:
    """Panels of one identity, planes (1, 3, C, H, W) and ws (1, num_ws, w_dim), from one camera c
    (1, 25).

    Args:
        kinds: Of `PANELS`, in the order wanted.
        limits: Depths that are white and darkest; none = the view's own.

    Returns:
        By kind a picture (res, res, 3); what has fewer pixels is enlarged to the size of the final
        picture.
    """
    out = generator.render(planes, ws, c, neural_rendering_resolution, deterministic=True)
    size = out.image.shape[-1]
    makers = {
        "image": lambda: to_pictures(out.image),
        "raw": lambda: to_pictures(out.image_raw),
        "depth": lambda: shade_depth(out.image_depth, out.alpha, limits),
        "normals": lambda: shade_normals(surface_normals(generator, planes, c, out), c, out.alpha),
    }
    return {kind: enlarge(makers[kind](), size)[0] for kind in kinds}


@torch.no_grad()
def surface_normals(
    generator: DensityModel, planes: Tensor, c: Tensor, out: RenderOutput
) -> Tensor:
    """Outward unit normals (1, 3, r, r) in world axes where the rays of camera c (1, 25) end; 0
    where the density is constant.
    """
    origins, directions = sample_rays(*unpack_label(c.float()), out.image_depth.shape[-1])
    points = origins + directions * out.image_depth.flatten(2).transpose(1, 2).to(origins)
    step = NORMAL_STEP * generator.rendering.box_warp / planes.shape[-1]
    offsets = torch.cat([torch.eye(3), -torch.eye(3)]).to(points) * step
    sigma = generator.query_density(
        (points[:, None] + offsets[None, :, None]).flatten(1, 2), planes
    )
    ahead, behind = sigma.view(1, 2, 3, -1).unbind(dim=1)
    return torch.nn.functional.normalize(behind - ahead, dim=1).unflatten(
        2, out.image_depth.shape[-2:]
    )


def shade_normals(normals: Tensor, c: Tensor, alpha: Tensor) -> Pictures:
    """Pictures (N, r, r, 3) of world normals (N, 3, r, r) seen by cameras c (N, 25); black where
    nothing is.
    """
    rotation = unpack_label(c.float())[0][:, :3, :3]
    in_camera = torch.einsum("nwc,nwij->ncij", rotation, normals)
    toward = in_camera * in_camera.new_tensor([1.0, -1.0, -1.0])[:, None, None]
    return to_pictures(toward.where(alpha > OPAQUE, -1.0))


def shared_limits(outputs: Iterable[RenderOutput]) -> tuple[float, float] | None:
    """Depth limits for all frames from the renderings of some."""
    depths, alphas = zip(
        *[
            (out.image_depth.float().cpu().flatten(), out.alpha.float().cpu().flatten())
            for out in outputs
        ],
        strict=True,
    )
    return depth_limits(torch.cat(depths), torch.cat(alphas))


def resize(picture: Pictures, size: int) -> Pictures:
    """Picture (h, w, 3) with `size` pixels a side, by Lanczos filtering; the same where it has them
    already.
    """
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
