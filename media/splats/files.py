"""Files of Gaussians: .ply and .splat as splat viewers read them, and GLB.

Axes. A GLB has glTF's axes, which are the world's: x to the right in the frontal view, y up, the
front towards +z. The other two have y down, as their readers expect: the world turned by 180
degrees around z. Lengths are world units.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from media.glb import FLOAT, Binary, glb_container, linear_colors
from media.splats.splats import Splats

SPLAT_FORMATS = {"splat-ply": ".ply", "splat": ".splat", "splat-glb": ".glb"}  # with endings
SH_C0 = 0.28209479177387814  # of spherical harmonics: the constant one
# what readers of .ply understand: what they blur they make fainter
RENDER_MODE = "comment SplatRenderMode: mip"
MOST_OPACITY = 1 - 1e-6  # so that its logit is finite
POINTS = 0  # glTF 2.0, section 5.24.4: mode of a primitive
EXTENSION = "KHR_gaussian_splatting"

Values = NDArray[np.float32]


def save_splats(path: str | os.PathLike[str], splats: Splats, kind: str | None = None) -> None:
    """Write Gaussians as one of `SPLAT_FORMATS`, by default the one that the file's ending names.

    Raises:
        UserError: if the ending names none, or the file cannot be written.
    """
    writers = dict(zip(SPLAT_FORMATS, (_ply, _splat, _glb), strict=True))
    suffix = Path(path).suffix.lower()
    kind = kind or next((one for one, ending in SPLAT_FORMATS.items() if ending == suffix), "")
    if kind not in writers:
        raise UserError(f"{path}: Gaussians are written as .ply, .splat or .glb")
    content = writers[kind](splats)
    with atomic_write(path) as file:
        file.write(content)


def _arrays(splats: Splats, turned: bool) -> tuple[Values, Values, Values, Values, Values]:
    """Positions, scales, quaternions (w x y z), opacities and colours, `turned` by 180 degrees
    around z or in the world's axes.
    """
    positions, scales, rotations, opacities, colors = (
        value.detach().float().cpu() for value in vars(splats).values()
    )
    if turned:
        positions = positions * torch.tensor([-1.0, -1.0, 1.0])
        w, x, y, z = rotations.unbind(-1)  # times the quaternion 0 0 0 1 from the left
        rotations = torch.stack([-z, -y, x, w], dim=-1)
    rotations = torch.nn.functional.normalize(rotations, dim=-1)
    values = (positions, scales, rotations, opacities, colors)
    return tuple(np.ascontiguousarray(value.numpy()) for value in values)  # type: ignore[return-value]


def _ply(splats: Splats) -> bytes:
    """Binary little endian, the properties of Kerbl et al.'s program: logarithms of scales, logits
    of opacities, colours as constant spherical harmonics.
    """
    positions, scales, rotations, opacities, colors = _arrays(splats, turned=True)
    logits = np.clip(opacities, 1 - MOST_OPACITY, MOST_OPACITY).astype(np.float64)
    columns = {
        "x y z": positions,
        "nx ny nz": np.zeros_like(positions),
        "f_dc_0 f_dc_1 f_dc_2": _harmonics(colors),
        "opacity": np.log(logits / (1 - logits))[:, None],
        "scale_0 scale_1 scale_2": np.log(scales),
        "rot_0 rot_1 rot_2 rot_3": rotations,
    }
    header = ["ply", "format binary_little_endian 1.0", RENDER_MODE]
    header += [f"element vertex {len(positions)}"]
    header += [f"property float {name}" for names in columns for name in names.split()]
    rows = np.concatenate(list(columns.values()), axis=1).astype("<f4")
    return ("\n".join([*header, "end_header"]) + "\n").encode() + rows.tobytes()


def _splat(splats: Splats) -> bytes:
    """32 bytes each, the largest and most opaque first."""
    positions, scales, rotations, opacities, colors = _arrays(splats, turned=True)
    rows = np.zeros(
        len(positions),
        dtype=[("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)],
    )
    rows["position"], rows["scale"] = positions, scales
    rows["rgba"] = _bytes(np.concatenate([colors, opacities[:, None]], axis=1) * 255)
    rows["turn"] = _bytes(rotations * 128 + 128)
    order = np.argsort(-scales.prod(axis=1, dtype=np.float64) * opacities, kind="stable")
    return rows[order].tobytes()


def _glb(splats: Splats) -> bytes:
    """Binary glTF 2.0 with KHR_gaussian_splatting; a reader that does not know it shows points."""
    positions, scales, rotations, opacities, colors = _arrays(splats, turned=False)
    binary = Binary()
    fallback = np.concatenate([linear_colors(colors), opacities[:, None]], axis=1)
    attributes = {
        "POSITION": binary.accessor(
            positions, FLOAT, min=positions.min(axis=0).tolist(), max=positions.max(axis=0).tolist()
        ),
        "COLOR_0": binary.accessor(fallback.astype(np.float32), FLOAT),
        f"{EXTENSION}:ROTATION": binary.accessor(np.roll(rotations, -1, axis=1), FLOAT),
        f"{EXTENSION}:SCALE": binary.accessor(scales, FLOAT),
        f"{EXTENSION}:OPACITY": binary.accessor(opacities, FLOAT),
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": binary.accessor(_harmonics(colors), FLOAT),
    }
    kernel = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    primitive = {"mode": POINTS, "attributes": attributes, "extensions": {EXTENSION: kernel}}
    return glb_container({"meshes": [{"primitives": [primitive]}]}, binary, [EXTENSION])


def _harmonics(colors: Values) -> Values:
    return ((colors - 0.5) / SH_C0).astype(np.float32)


def _bytes(values: Values) -> NDArray[np.uint8]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
