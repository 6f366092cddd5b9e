"""The page's data as plain values for JSON: heads, decoder, rendering settings and cameras."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.numbers import significant
from media.avatar.planes import CHANNELS_A_TEXEL, QuantizedPlanes, pack, quantize
from media.pictures.grids import data_uri, depth_limits, to_pictures
from training.cameras import CameraSummary, unpack_label
from training.networks.generator import Generator

SAMPLERS = ("interval", "released")  # what the shader has
UNIFORM_BYTES = 16384  # of a block of constants, what every WebGL 2 has
DEPTH_VIEWS = (5, 3)  # yaws and pitches from which the range of depths is taken
CAMERA_NUMBERS = (
    "radius",
    "pivot",
    "center",
    "intrinsics",
    "yaw_range",
    "pitch_range",
    "yaw",
    "pitch",
)


@dataclass(frozen=True)
class Head:
    """One identity in the page."""

    name: str
    values: dict[str, Any]  # for JSON
    data: str  # base64 of the packed planes


@torch.no_grad()
def make_head(
    name: str, generator: Generator, planes: Tensor, ws: Tensor, cameras: CameraSummary
) -> Head:
    """A head from its planes (1, 3, C, H, W) and latents ws (1, num_ws, w_dim)."""
    quantized = quantize(planes)
    front = generator.render(planes, ws, cameras.frontal_label()[None].to(planes.device))
    values = {
        "name": name,
        "depths": _depth_range(generator, planes, ws, cameras),
        "picture": data_uri(to_pictures(front.image_raw)[0]),
        **_dequantization(quantized),
    }
    return Head(name, values, base64.b64encode(pack(quantized.codes)).decode())


def scene_values(generator: Generator, cameras: CameraSummary, title: str) -> dict[str, Any]:
    """Values that all heads of a page share.

    Raises:
        UserError: if the page could not render this model: a decoder of another kind, or too large
            a one.
    """
    options, rendering = generator.config.generator, generator.rendering
    return {
        "title": title,
        "planes": {
            "resolution": options.plane_resolution,
            "channels": _padded(options.plane_channels),
        },
        "decoder": _decoder_values(generator),
        "rendering": {
            "resolution": rendering.resolution,
            "coarse": rendering.depth_resolution,
            "fine": rendering.depth_resolution_importance,
            "near": rendering.ray_start,
            "far": rendering.ray_end,
            "box": rendering.box_warp,
            "unit": rendering.unit,
            "background": rendering.background,
            "released_axes": rendering.plane_axes == "released",
            "released_sampling": rendering.fine_sampling == "released",
        },
        "cameras": {name: getattr(cameras, name) for name in CAMERA_NUMBERS},
    }


def _padded(channels: int) -> int:
    return -(-channels // CHANNELS_A_TEXEL) * CHANNELS_A_TEXEL


def _decoder_values(generator: Generator) -> dict[str, Any]:
    """The decoder's constants in the order in which the shader reads them, as base64 of vectors of
    four fp32 numbers.

    For each hidden unit: its weights over the channels, its weights towards (density, red, green,
    blue), its bias and three zeros. At the end the biases of the four outputs. The density gain is
    multiplied in.
    """
    describe = getattr(generator.decoder, "two_layer_weights", lambda: None)
    weights = describe()
    if weights is None or generator.rendering.fine_sampling not in SAMPLERS:
        raise UserError("the page renders the standard decoder and samplers only")
    w0, b0, w1, b1 = (tensor.detach().double().cpu() for tensor in weights)
    hidden, channels = w0.shape
    gain = torch.tensor([generator.rendering.density_gain, 1.0, 1.0, 1.0], dtype=torch.float64)
    into = torch.nn.functional.pad(w0, (0, _padded(channels) - channels))
    out = (w1[:4] * gain[:, None]).T
    units = torch.cat([into, out, b0[:, None], torch.zeros(hidden, 3, dtype=torch.float64)], dim=1)
    packed = torch.cat([units.flatten(), b1[:4] * gain]).float().numpy().astype("<f4").tobytes()
    if len(packed) > UNIFORM_BYTES:
        raise UserError(
            f"the decoder takes {len(packed)} bytes, and a web page may count on {UNIFORM_BYTES}:"
            f" {hidden} hidden units are too many"
        )
    return {"hidden": hidden, "data": base64.b64encode(packed).decode()}


def _dequantization(quantized: QuantizedPlanes) -> dict[str, Any]:
    """Per channel, for textures that hold code / 255 and for a mean over three planes: factors,
    what to add, and the code of zero.
    """
    scale, zero = quantized.scale.astype(np.float64), quantized.zero.astype(np.float64)
    return {
        "scale": [significant(value) for value in (scale * (255 / 3)).flatten()],
        "offset": [significant(value) for value in (-scale * zero / 3).sum(axis=0)],
        "zero": quantized.zero.flatten().tolist(),
    }


def _depth_range(
    generator: Generator, planes: Tensor, ws: Tensor, cameras: CameraSummary
) -> list[float]:
    """Nearest and farthest depth of the surface from all around, relative to the camera's distance
    to the pivot; world units.
    """
    depths, alphas = [], []
    for c in cameras.grid(*DEPTH_VIEWS).to(planes.device).split(1):
        out = generator.render(planes, ws, c)
        distance = (unpack_label(c)[0][0, :3, 3].cpu() - torch.tensor(cameras.pivot)).norm()
        depths.append(out.image_depth.float().cpu() - distance)
        alphas.append(out.alpha.float().cpu())
    near, far = depth_limits(torch.cat(depths), torch.cat(alphas)) or (-1.0, 1.0)
    return [significant(near), significant(near + max(far - near, 1e-6 * cameras.radius))]
