"""The built-in data set: pictures of random heads with exactly known cameras, in the format that
training reads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools.heads.basis import load_basis
from data_tools.heads.paint import light, paint
from data_tools.heads.person import Head, Person, build_head, random_person
from data_tools.heads.render import Array, Picture, Raycaster
from data_tools.heads.traits import person_traits
from data_tools.sinks import Sink, check_dest, image_name, open_sink, write_labels
from dnnlib.console import UserError, counter
from dnnlib.files import cache_dir
from dnnlib.parallel import ordered_map
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics, unpack_label
from training.config.presets import (
    HEADS_BACKGROUND,
    HEADS_FOCAL,
    HEADS_RADIUS,
)
from training.data.depth_maps import DEPTH_UNIT
from training.data.pictures import RESOLUTIONS
from training.data.traits import Traits

HEADS_PIVOT = (0.0, 0.0, 0.0)
HEADS_BOX = 1.0
HEADS_YAW, HEADS_PITCH = 45.0, 20.0
# Streams of random numbers of one identity: its head, its cameras. Views added later leave the
# heads as they are.
HEAD_STREAM, CAMERA_STREAM = 0, 1
HEADS_PER_WORKER = 2  # fewer do not pay for starting a process


@dataclass(frozen=True)
class HeadsConfig:
    """Settings of `generate_heads`.

    Attributes:
        count: number of images. resolution: side in pixels, a power of two up to 1024. seed: of the
            whole data set.
        views_per_identity: images of each head, from different cameras; they follow one another.
        background: plain colour, 0..255, the same on all images. depth: also write exact depth maps
            and masks. alpha: transparent images in the place of the background.
        supersampling: rays along a pixel's side, odd. workers: processes; 0 = as many as there are
            cores (a script that calls with other than 1 needs the usual `if __name__ ==
            "__main__"`).
    """

    count: int = 6000
    resolution: int = 64
    seed: int = 0
    views_per_identity: int = 2
    background: tuple[int, int, int] = HEADS_BACKGROUND
    depth: bool = False
    alpha: bool = False
    supersampling: int = 3
    workers: int = 0


def random_labels(seed: int, identity: int, count: int) -> torch.Tensor:
    """Camera labels (count, 25) of the views of one identity: yaw and pitch uniform, orbit of
    `HEADS_RADIUS` around the origin.
    """
    rng = np.random.default_rng((seed, identity, CAMERA_STREAM))
    yaw, pitch = torch.from_numpy(
        np.radians(rng.uniform(-1, 1, (count, 2)) * (HEADS_YAW, HEADS_PITCH)).T
    )
    return pack_label(
        orbit_pose(yaw.float(), pitch.float(), HEADS_RADIUS, HEADS_PIVOT),
        pinhole_intrinsics(HEADS_FOCAL),
    )


def render_head(
    head: Head, label: Array, config: HeadsConfig, raycaster: Raycaster | None = None
) -> Picture:
    """Picture of a lit head seen by a camera label (25,); pass a raycaster to reuse it for more
    views.
    """
    raycaster = raycaster or Raycaster(head.mesh)
    cam2world, intrinsics = unpack_label(torch.as_tensor(label, dtype=torch.float64))
    return raycaster.render(
        cam2world.numpy(),
        intrinsics.numpy(),
        config.resolution,
        lambda tags, normals: paint(tags, head.look) * light(normals),
        None if config.alpha else config.background,
        config.supersampling,
    )


def _person(seed: int, identity: int) -> Person:
    return random_person(load_basis(), np.random.default_rng((seed, identity, HEAD_STREAM)))


def head_traits(seed: int, identity: int) -> dict[str, float]:
    """Traits by name of one identity of `generate_heads`, without rendering (milliseconds)."""
    return person_traits(load_basis(), _person(seed, identity))


View = tuple[str, list[float], dict[str, bytes], dict[str, float]]
"""Name, label, files (relative name -> content) and traits of one picture."""


def _render_identity(config: HeadsConfig, identity: int) -> list[View]:
    """Images of one identity."""
    first = identity * config.views_per_identity
    views = min(config.views_per_identity, config.count - first)
    person = _person(config.seed, identity)
    basis = load_basis()
    head, traits = build_head(basis, person), person_traits(basis, person)
    raycaster = Raycaster(head.mesh)
    rendered = []
    for view, label in enumerate(
        random_labels(config.seed, identity, config.views_per_identity)[:views]
    ):
        name = image_name(first + view)
        picture = render_head(head, label.double().numpy(), config, raycaster)
        rendered.append((name, label.tolist(), _files(name, picture, config.depth), traits))
    return rendered


def _files(name: str, picture: Picture, depth: bool) -> dict[str, bytes]:
    files = {name: _png(picture.image)}
    if depth:
        files[f"depth/{name}"] = _png(np.round(picture.depth / DEPTH_UNIT).astype(np.uint16))
        files[f"mask/{name}"] = _png(picture.mask.astype(np.uint8) * 255)
    return files


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _identities(config: HeadsConfig) -> Generator[list[View]]:
    count = -(-config.count // config.views_per_identity)
    return ordered_map(
        _render_identity, config, range(count), count, config.workers, HEADS_PER_WORKER
    )


def _fill(sink: Sink, config: HeadsConfig) -> None:
    labels: dict[str, list[float]] = {}
    traits: dict[str, dict[str, float]] = {}
    with (
        counter("Rendering heads", config.count, "img") as bar,
        contextlib.closing(_identities(config)) as identities,
    ):
        for views in identities:
            for name, label, files, own_traits in views:
                labels[name], traits[name] = label, own_traits
                for file_name, data in files.items():
                    sink.write(file_name, data)
            bar.update(len(views))
    write_labels(sink, list(labels), np.array(list(labels.values())), as_table(traits))


def as_table(traits: dict[str, dict[str, float]]) -> Traits:
    """Traits of pictures by name, as dataset.json holds them."""
    rows = {name: list(values.values()) for name, values in traits.items()}
    return Traits(tuple(next(iter(traits.values()))), rows)


def check_config(config: HeadsConfig) -> None:
    """Refuse settings that cannot be rendered.

    Raises:
        UserError: naming the setting.
    """
    positive = {
        "count": config.count,
        "views_per_identity": config.views_per_identity,
        "supersampling": config.supersampling,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if config.supersampling % 2 == 0:
        raise UserError(f"supersampling must be odd, not {config.supersampling}")
    largest = RESOLUTIONS[-1]
    if not 1 <= config.resolution <= largest or config.resolution & (config.resolution - 1):
        raise UserError(
            f"resolution must be a power of two up to {largest}, not {config.resolution}"
        )
    if config.seed < 0 or config.workers < 0:
        raise UserError(
            f"seed and workers must not be negative, not {config.seed} and {config.workers}"
        )
    if len(config.background) != 3 or not all(0 <= channel <= 255 for channel in config.background):
        raise UserError(f"background must be three numbers from 0 to 255, not {config.background}")


BUILT_IN = HeadsConfig(count=6000, resolution=64)


def built_in_heads() -> Path:
    """Where the data set lies that is trained on without --data: 6,000 heads in the cache."""
    return cache_dir() / f"heads{BUILT_IN.resolution}-{BUILT_IN.count}.zip"


def render_built_in_heads() -> Path:
    """That data set, rendered the first time."""
    path = built_in_heads()
    return path if path.exists() else generate_heads(path, BUILT_IN)


def generate_heads(
    dest: str | os.PathLike[str], config: HeadsConfig | None = None, *, overwrite: bool = False
) -> Path:
    """Render a data set of random heads.

    The archive (or folder, if `dest` does not end in .zip) holds PNGs named as `image_name` says
    and dataset.json. With `config.depth` also depth/<name> (16-bit, `DEPTH_UNIT` per step along the
    pixel's viewing ray, 0 = background) and mask/<name> (8-bit, 255 = head), both of the ray
    through the pixel's centre; dataset.json does not list them. `dest` appears only when complete.
    The same settings give the same bytes, whatever the number of workers.

    Returns:
        The path written.

    Raises:
        UserError: settings out of range, `dest` exists and is not empty, `embreex` is missing, or
            the disk is full.
    """
    config = config or HeadsConfig()
    check_config(config)
    dest = Path(dest)
    check_dest(dest, overwrite)
    if importlib.util.find_spec("embreex") is None:  # would be a worker's traceback
        raise UserError(
            "rendering heads needs the package embreex; install it with: pip install"
            " 'open-eg3d[heads]'"
        )
    with open_sink(dest, overwrite=overwrite) as sink:
        _fill(sink, config)
    return dest
