"""A scene of bright dots with known cameras, written in other people's formats by code of its own,
and measured in the result.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
UP_AXES = {
    "x": (1, 0, 0),
    "y": (0, 1, 0),
    "z": (0, 0, 1),
    "-x": (-1, 0, 0),
    "-y": (0, -1, 0),
    "-z": (0, 0, -1),
}


def look_at(position: Array, target: Array, up: Array) -> Array:
    """Camera-to-world matrix with OpenCV axes, from cross products alone."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    return matrix


def orbit(
    count: int,
    *,
    yaw: float = 180,
    pitch: float = 20,
    radius: float = 2.7,
    target: Any = (0, 0, 0),
    up: str = "y",
    seed: int = 0,
) -> Array:
    """Cameras (count, 4, 4) around `target`, within +-`yaw` and +-`pitch` degrees of the front: +z
    where y is up, -y where z is.
    """
    random = np.random.RandomState(seed)
    a, b = np.radians(random.uniform(-1, 1, (2, count)) * [[yaw], [pitch]])
    axis = np.array(UP_AXES[up], dtype=float)
    fronts = {"y": np.array([0.0, 0, 1]), "z": np.array([0.0, -1, 0])}
    front = fronts.get(up, np.roll(np.abs(axis), 1))
    side = np.cross(axis, front)
    directions = np.stack(
        [np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], axis=1
    ) @ np.stack([front, side, axis])
    return np.stack(
        [
            look_at(np.array(target) + radius * d, np.array(target, dtype=float), axis)
            for d in directions
        ]
    )


def project(points: Array, cam2world: Array, intrinsics: Array) -> Array:
    """Pinhole projection of points (P, 3), in the units of the intrinsics (P, 2)."""
    in_camera = np.linalg.solve(
        cam2world, np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    )[:3]
    return ((intrinsics @ in_camera) / in_camera[2]).T[:, :2]


@dataclass
class Scene:
    """Three dots near `target`, cameras with OpenCV axes in the source's world, one pixel-unit lens
    and picture size.
    """

    cam2world: Array
    target: Array = field(default_factory=lambda: np.zeros(3))
    intrinsics: Array = field(
        default_factory=lambda: np.array([[150.0, 0, 47.0], [0, 150.0, 41.0], [0, 0, 1]])
    )
    size: tuple[int, int] = (96, 80)
    spread: float = 0.25

    @property
    def points(self) -> Array:
        """World positions (3, 3) of the dots."""
        return self.target + self.spread * np.array(
            [(1, 0.2, -0.3), (-0.8, 0.9, 0.2), (0.1, -0.8, 0.7)]
        )

    def picture(self, index: int) -> Image.Image:
        """A smooth round dot in each channel, where the formulas say."""
        width, height = self.size
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        centres = project(self.points, self.cam2world[index], self.intrinsics)
        blobs = [255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8) for u, v in centres]
        return Image.fromarray(np.stack(blobs, axis=-1).round().astype(np.uint8))

    def png(self, index: int) -> bytes:
        """The picture as a file."""
        file = io.BytesIO()
        self.picture(index).save(file, "PNG")
        return file.getvalue()

    def __len__(self) -> int:
        return len(self.cam2world)


def dots(picture: Array) -> Array:
    """Centres of mass of the channels of a picture (H, W, 3), in picture widths and heights (3,
    2).
    """
    weight = picture / picture.sum((0, 1))
    height, width = picture.shape[:2]
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.stack([weight.sum(0).T @ u, weight.sum(1).T @ v], axis=1)


def similarity(source: Array, dest: Array) -> tuple[float, Array, Array]:
    """Scale, rotation and shift that take points (M, 3) to points (M, 3) best (Umeyama 1991)."""
    a, b = source - source.mean(0), dest - dest.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / (a**2).sum())
    return scale, rotation, dest.mean(0) - scale * rotation @ source.mean(0)


def read_result(path: Path) -> list[tuple[str, Array, Array]]:
    """Name, pixels and label of every picture of a data set, read with the standard library and
    Pillow only.
    """
    if path.is_dir():
        files = {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file()
        }
    else:
        with zipfile.ZipFile(path) as archive:
            assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            files = {name: archive.read(name) for name in archive.namelist()}
    labels = json.loads(files.pop("dataset.json"))["labels"]
    files.pop("faces.csv", None)
    assert sorted(files) == [name for name, _ in labels]
    return [
        (name, np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")), np.array(label))
        for name, label in labels
    ]


# --------------------------------------------------------------------------------------------------
# Writers


def write_pictures(scene: Scene, folder: Path, names: list[str]) -> None:
    """Pictures under these names."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(scene.png(index))


def normalised(scene: Scene) -> Array:
    """Intrinsics in picture sizes."""
    return np.diag([1 / scene.size[0], 1 / scene.size[1], 1]) @ scene.intrinsics


def label_of(cam2world: Array, intrinsics: Array) -> list[float]:
    """25 numbers."""
    return [*cam2world.ravel().tolist(), *intrinsics.ravel().tolist()]


def write_labels(scene: Scene, folder: Path) -> Path:
    """dataset.json."""
    names = [f"pics/p{index}.png" for index in range(len(scene))]
    write_pictures(scene, folder, names)
    labels = [
        [name, label_of(matrix, normalised(scene))]
        for name, matrix in zip(names, scene.cam2world, strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def write_transforms(
    scene: Scene,
    folder: Path,
    *,
    per_frame: bool = False,
    angle: bool = False,
    bare_names: bool = False,
) -> Path:
    """transforms.json with OpenGL axes; lenses for all or for each frame; file names with or
    without their ending.
    """
    names = [f"train/r_{index}.png" for index in range(len(scene))]
    write_pictures(scene, folder, names)
    (fx, _, cx), (_, fy, cy) = scene.intrinsics[:2].tolist()
    lens: dict[str, Any] = {
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
        "w": scene.size[0],
        "h": scene.size[1],
    }
    if angle:
        lens = {"camera_angle_x": 2 * np.arctan(scene.size[0] / 2 / fx)}
    frames = [
        {
            "file_path": "./" + (name[:-4] if bare_names else name),
            "transform_matrix": (matrix @ OPENGL).tolist(),
            **(lens if per_frame else {}),
        }
        for name, matrix in zip(names, scene.cam2world, strict=True)
    ]
    (folder / "transforms.json").write_text(
        json.dumps({**({} if per_frame else lens), "frames": frames})
    )
    return folder


def quaternion(rotation: Array) -> Array:
    """w, x, y, z of a rotation: the eigenvector of Bar-Itzhack's matrix."""
    m = rotation
    k = np.diag(2 * np.append(np.diag(m), 0) - np.trace(m) * np.array([1, 1, 1, -1]))
    k[:3, :3] += m + m.T - 2 * np.diag(np.diag(m))
    k[3, :3] = k[:3, 3] = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    return np.array([w, x, y, z])


def write_colmap(scene: Scene, folder: Path, *, binary: bool) -> Path:
    """images/ and sparse/0 as COLMAP 3 writes them."""
    names = [f"sub/im{index}.png" for index in range(len(scene))]
    write_pictures(scene, folder / "images", names)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (fx, _, cx), (_, fy, cy) = scene.intrinsics[:2].tolist()
    world2cam = np.linalg.inv(scene.cam2world)
    poses = [
        [*quaternion(matrix[:3, :3]).tolist(), *matrix[:3, 3].tolist()] for matrix in world2cam
    ]
    if binary:
        camera = struct.pack("<Q", 1) + struct.pack("<iiQQ4d", 1, 1, *scene.size, fx, fy, cx, cy)
        images = struct.pack("<Q", len(names))
        for index, (name, values) in enumerate(zip(names, poses, strict=True)):
            images += (
                struct.pack("<i7di", index + 1, *values, 1)
                + name.encode()
                + b"\0"
                + struct.pack("<Q", 0)
            )
        (model / "cameras.bin").write_bytes(camera)
        (model / "images.bin").write_bytes(images)
        return folder
    (model / "cameras.txt").write_text(
        f"# a comment\n1 PINHOLE {scene.size[0]} {scene.size[1]} {fx!r} {fy!r} {cx!r} {cy!r}\n"
    )
    lines = [
        f"{index + 1} {' '.join(map(repr, values))} 1 {name}\n\n"
        for index, (name, values) in enumerate(zip(names, poses, strict=True))
    ]
    (model / "images.txt").write_text("# a comment\n" + "".join(lines))
    return folder


def write_srn(scene: Scene, folder: Path) -> Path:
    """Two objects, each with half of the pictures."""
    f, cx, cy = scene.intrinsics[0, 0], scene.intrinsics[0, 2], scene.intrinsics[1, 2]
    for index, matrix in enumerate(scene.cam2world):
        home = folder / f"object{index * 2 // len(scene)}"
        for child in ("rgb", "pose"):
            (home / child).mkdir(parents=True, exist_ok=True)
        (home / "rgb" / f"{index:06d}.png").write_bytes(scene.png(index))
        (home / "pose" / f"{index:06d}.txt").write_text(
            " ".join(map(repr, matrix.ravel().tolist()))
        )
        (home / "intrinsics.txt").write_text(
            f"{f} {cx} {cy} 0.\n0. 0. 0.\n1.\n{scene.size[1]} {scene.size[0]}\n"
        )
    return folder


WRITERS: dict[str, Callable[[Scene, Path], Path]] = {
    "labels": write_labels,
    "transforms": write_transforms,
    "transforms-per-frame": lambda scene, folder: write_transforms(scene, folder, per_frame=True),
    "transforms-bare-names": lambda scene, folder: write_transforms(scene, folder, bare_names=True),
    "colmap-text": lambda scene, folder: write_colmap(scene, folder, binary=False),
    "colmap-binary": lambda scene, folder: write_colmap(scene, folder, binary=True),
    "srn": write_srn,
}
