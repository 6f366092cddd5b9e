"""Videos and their files: what each frame shows, that planes are computed once, and that files play
and come whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from dnnlib.console import UserError, progress
from media.pictures import panels
from media.pictures.normals import surface_normals
from media.pictures.panels import render_panels
from media.videos import files as video_files
from media.videos.files import gif_delays, open_video
from media.videos.videos import VideoWriter
from tests.media.pictures import test_grids
from tests.media.pictures.test_grids import Output, identity
from training.cameras import unpack_label
from training.config.settings import RenderingConfig
from training.rendering.rays import sample_rays

SIZE = 16


class Ball:
    """A ball whose radius is the latent, seen by exact ray casting: image and raw tell the normal,
    depth is the distance.
    """

    def __init__(self) -> None:
        self.rendering = RenderingConfig(box_warp=1.0)
        self.backbone_runs = 0

    def planes(self, ws: Tensor, noise_mode: str = "const") -> Tensor:
        assert noise_mode == "const"
        self.backbone_runs += 1
        return ws[:, :1, :1].reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 64, 64)

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        return 100 * (planes[:, 0, 0, 0, 0, None, None] - points.norm(dim=-1, keepdim=True))

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_density(points, planes), points + 0.5

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = None,
        deterministic: bool = True,
    ) -> Output:
        assert deterministic
        assert len(planes) == len(ws) == len(c) == 1
        r = neural_rendering_resolution or SIZE // 2
        origins, directions = sample_rays(*unpack_label(c), r)
        radius = planes[0, 0, 0, 0, 0]
        middle = -(origins * directions).sum(-1)
        square = radius**2 - origins.square().sum(-1) + middle**2
        hit = square > 0
        depth = middle - square.clamp(min=0).sqrt()
        normal = (origins + depth[..., None] * directions) / radius
        raw = normal.where(hit[..., None], -1.0).transpose(1, 2).unflatten(2, (r, r))
        image = torch.nn.functional.interpolate(raw, size=(SIZE, SIZE), mode="nearest")
        return Output(image, raw, depth.view(1, 1, r, r), hit.float().view(1, 1, r, r))


def labels(yaws: list[float]) -> Tensor:
    return test_grids.ORBIT.label(yaws, 0.0)


ORBIT = labels([0.0, 0.3, -0.3, 0.0])
ALL = ("image", "raw", "depth", "normals")


def frames_of(video: VideoWriter) -> list[np.ndarray]:
    return list(video.frames())


# --------------------------------------------------------------------------------------------------
# Frames


def test_a_still_camera_gives_identical_frames() -> None:
    frames = frames_of(VideoWriter(Ball(), [identity(0.2)], labels([0.1] * 5), panels=ALL))
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


def test_an_orbit_starts_and_ends_on_the_same_frame() -> None:
    frames = frames_of(VideoWriter(Ball(), [identity(0.2)], ORBIT, panels=ALL))
    np.testing.assert_array_equal(frames[0], frames[-1])
    assert not np.array_equal(frames[0], frames[1])


def test_an_interpolation_ends_where_it_starts_and_shows_each_seed() -> None:
    keys = torch.cat([identity(0.15), identity(0.25), identity(0.2)])
    frames = frames_of(VideoWriter(Ball(), [keys], labels([0.0] * 7), panels=ALL))
    np.testing.assert_array_equal(frames[0], frames[-1])
    covered = [int((frame[:, SIZE : 2 * SIZE] > 0).any(axis=2).sum()) for frame in frames]
    assert covered[2] > covered[4] > covered[0]  # the seeds' radii in the order 0.25, 0.2, 0.15


def test_planes_are_computed_once_while_only_the_camera_moves() -> None:
    scene = Ball()
    frames_of(VideoWriter(scene, [identity(0.2), identity(0.1)], ORBIT, panels=ALL))
    assert scene.backbone_runs == 2
    scene = Ball()
    frames_of(VideoWriter(scene, [torch.cat([identity(0.2), identity(0.1)])], ORBIT))
    assert scene.backbone_runs == len(ORBIT)


def test_cells_and_panels_have_their_places() -> None:
    scene, radii = Ball(), [0.1, 0.15, 0.2, 0.25, 0.28, 0.3]
    video = VideoWriter(
        scene,
        [identity(radius) for radius in radii],
        ORBIT[:2],
        columns=3,
        panels=("raw", "normals"),
        size=32,
    )
    frame = frames_of(video)[1]
    assert frame.shape == (2 * 32, 3 * 2 * 32, 3)
    for index, radius in enumerate(radii):
        row, column = divmod(index, 3)
        cell = frame[row * 32 : (row + 1) * 32, column * 64 : (column + 1) * 64]
        alone = frames_of(
            VideoWriter(scene, [identity(radius)], ORBIT[:2], panels=("raw", "normals"), size=32)
        )[1]
        np.testing.assert_array_equal(cell, alone)
        both = render_panels(
            scene, scene.planes(identity(radius)), identity(radius), ORBIT[1:2], ("raw", "normals")
        )
        np.testing.assert_array_equal(cell[:, :32], panels.resize(both["raw"], 32))
        np.testing.assert_array_equal(cell[:, 32:], panels.resize(both["normals"], 32))


def test_depth_has_one_scale_for_the_whole_video() -> None:
    """The same distance is the same grey in each frame, although the nearest point differs from
    radius to radius.
    """
    keys = torch.cat([identity(0.1), identity(0.3)])
    video = VideoWriter(
        Ball(), [keys], labels([0.0] * 3), panels=("depth",), neural_rendering_resolution=SIZE
    )
    small, large = (int(frame.max()) for frame in frames_of(video)[:2])
    assert small < large - 50  # the small ball's front is farther away


def test_normals_point_outward() -> None:
    scene, ws, c = Ball(), identity(0.25), ORBIT[1:2]
    planes = scene.planes(ws)
    out = scene.render(planes, ws, c, 32)
    normals = surface_normals(scene, planes, c, out)
    solid = out.alpha > 0.5
    difference = (normals - out.image_raw).norm(dim=1, keepdim=True)[solid]
    assert difference.max() < 0.01
    assert solid.sum() > 100


def test_normals_are_seen_from_the_camera() -> None:
    """In the middle of a ball blue, at its right edge red, at its top green, wherever the camera
    is.
    """
    scene, ws = Ball(), identity(0.3)
    for c in ORBIT.split(1):
        picture = render_panels(scene, scene.planes(ws), ws, c, ("normals",), 65)["normals"]
        picture = picture.astype(int)
        solid = picture.max(axis=2) > 0
        middle = SIZE // 2
        right = np.flatnonzero(solid[middle])[-1]
        top = np.flatnonzero(solid[:, middle])[0]
        assert picture[middle, middle, 2] > 245
        assert abs(picture[middle, middle, :2] - 128).max() < 25
        assert picture[middle, right, 0] > 200
        assert picture[top, middle, 1] > 200
        assert (picture[0, 0] == 0).all()


# --------------------------------------------------------------------------------------------------
# Files


def moving_square(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    frames = []
    for index in range(count):
        frame = np.full((height, width, 3), (40, 80, 160), dtype=np.uint8)
        frame[8:24, 2 + 2 * index : 18 + 2 * index] = (220, 60, 30)
        frames.append(frame)
    return frames


def read_mp4(path: Path) -> tuple[list[np.ndarray], dict]:
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader], about


def read_gif(path: Path) -> tuple[list[np.ndarray], list[int]]:
    with Image.open(path) as file:
        shown = [
            (np.asarray(frame.convert("RGB")), frame.info["duration"])
            for frame in ImageSequence.Iterator(file)
        ]
        assert file.info["loop"] == 0
    return [frame for frame, _ in shown], [delay for _, delay in shown]


def save(path: Path, frames: Iterable[np.ndarray], fps: float = 20) -> Path:
    with open_video(path, fps) as writer:
        for frame in frames:
            writer.add(frame)
    return path


def test_webm_holds_alpha(tmp_path: Path) -> None:
    frames = [
        np.concatenate([frame, np.where(frame[..., :1] > 128, 255, 64)], axis=2).astype(np.uint8)
        for frame in moving_square(4)
    ]
    path = save(tmp_path / "a.webm", frames)
    # ffmpeg's own decoder of VP9 leaves alpha out
    decoder = {"pix_fmt": "rgba", "bits_per_pixel": 32, "input_params": ["-c:v", "libvpx-vp9"]}
    reader = imageio_ffmpeg.read_frames(str(path), **decoder)
    width, height = next(reader)["size"]
    found = [np.frombuffer(one, np.uint8).reshape(height, width, 4) for one in reader]
    assert len(found) == len(frames)
    for one, frame in zip(found, frames, strict=True):
        assert np.abs(one[..., 3].astype(int) - frame[..., 3]).mean() < 3
    assert path.read_bytes() == save(tmp_path / "b.webm", frames).read_bytes()


def test_mp4_holds_the_frames(tmp_path: Path) -> None:
    frames = moving_square(9)
    found, about = read_mp4(save(tmp_path / "a.mp4", frames, fps=12.5))
    assert about["fps"] == 12.5
    assert about["codec"] == "h264"
    assert "yuv420p" in about["pix_fmt"]
    assert len(found) == len(frames)
    for frame, expected in zip(found, frames, strict=True):
        error = np.abs(frame.astype(int) - expected)
        assert error.mean() < 6  # colour has half the resolution
        # and keeps its tone away from edges
        assert np.abs(frame[2:6, 40:46].astype(int) - (40, 80, 160)).max() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_gif_holds_the_frames(tmp_path: Path) -> None:
    frames = moving_square(9)
    found, delays = read_gif(save(tmp_path / "a.gif", frames))
    assert len(found) == len(frames)
    for frame, expected in zip(found, frames, strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 4
    # the last frame is the first: both together are shown for one frame's time
    assert sum(delays) == 8 * 50


@pytest.mark.parametrize("kind", video_files.VIDEO_FORMATS)
def test_the_same_frames_give_the_same_file(tmp_path: Path, kind: str) -> None:
    first, second = (
        save(tmp_path / f"{name}.{kind}", moving_square(5)).read_bytes() for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize(("count", "fps"), [(1, 10), (2, 25), (30, 30), (7, 12.5), (4, 50)])
def test_gif_delays_keep_the_pace(count: int, fps: float) -> None:
    delays = gif_delays(count, fps)
    assert len(delays) == count
    assert min(delays) >= 2
    assert abs(sum(delays) - 100 * max(count - 1, 1) / fps) <= 3
    assert sum(delays[1:-1]) == pytest.approx(100 * max(count - 2, 0) / fps, abs=1.5)


@pytest.mark.parametrize("kind", video_files.VIDEO_FORMATS)
def test_a_failure_keeps_the_old_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_text("old")

    def frames() -> Iterator[np.ndarray]:
        yield moving_square(1)[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        save(tmp_path / f"a.{kind}", frames())
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{kind}"]
    assert (tmp_path / f"a.{kind}").read_text() == "old"


def test_frames_that_ffmpeg_refuses_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ffmpeg stopped") as error:
        # odd sides cannot be 4:2:0
        save(tmp_path / "a.mp4", [frame[:31, :47] for frame in moving_square(3)])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script",
    [
        "exit 3",
        "head -c 1000 > /dev/null; exit 3",
        'ulimit -f 8; exec "{ffmpeg}" "$@"',  # as on a full disk, at the end of the file
    ],
)
def test_ffmpeg_that_dies_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake, folder = tmp_path / "ffmpeg", tmp_path / "out"
    text = script.replace("{ffmpeg}", imageio_ffmpeg.get_ffmpeg_exe())
    fake.write_text(f"#!/bin/sh\n{text}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"a\.mp4: ffmpeg stopped") as error:
        save(folder / "a.mp4", noise)
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())


def test_a_video_stopped_early_is_whole(tmp_path: Path) -> None:
    video = VideoWriter(Ball(), [identity(0.2)], labels([0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.0]))
    paths, asked = [tmp_path / "a.mp4", tmp_path / "a.gif"], iter([False, False, True])
    nothing: list[int] = []
    with progress(nothing, "Frames") as bar:
        assert video.write(paths, 10, bar, lambda: next(asked)) == 3
    assert len(read_mp4(paths[0])[0]) == len(read_gif(paths[1])[0]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


def test_browsers_can_start_before_the_end(tmp_path: Path) -> None:
    """The index stands before the pictures."""
    content = save(tmp_path / "a.mp4", moving_square(3)).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
