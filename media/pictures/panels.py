"""One frame of one identity as panels: picture, rendering before super-resolution, depth, normals.

Depth has one scale for all frames of a video, so that nothing flickers as the camera moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from media import PictureModel, RenderOutput
from media.pictures.grids import (
    Pictures,
    depth_limits,
    enlarge,
    shade_depth,
    shade_normals,
    to_pictures,
)


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
        "normals": lambda: shade_normals(generator, planes, c, out),
    }
    return {kind: enlarge(makers[kind](), size)[0] for kind in kinds}


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
    """Resize a picture (h, w, 3 or 4) to `size` pixels per side by Lanczos filtering."""
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
