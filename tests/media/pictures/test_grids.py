"""Grids of pictures: every pixel where it belongs, depth in order and on one scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dnnlib.console import UserError
from media.pictures import grids
from training.cameras import CameraSummary, orbit_angles, unpack_label
from training.config.settings import RenderingConfig

SIZE, RAW_SIZE = 8, 4


class Output(NamedTuple):
    image: Tensor
    image_raw: Tensor
    image_depth: Tensor
    alpha: Tensor


ORBIT = CameraSummary(2.7, (0.0, 0.0, 0.0), intrinsics=(4.0, 0, 0.5, 0, 4.0, 0.5, 0, 0, 1))


class YawScene:
    """Image: red tells the identity, green the yaw, blue the pitch. Raw: its four quadrants differ.
    Depth: 2 + yaw in the left half.
    """

    def __init__(self) -> None:
        self.backbone_runs = 0
        self.batches: list[int] = []
        self.rendering = RenderingConfig()

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        return planes[:, :1, 0, 0, 0, None] - points[..., :1]  # normals point along x

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_density(points, planes), points

    def planes(self, ws: Tensor, noise_mode: str = "const") -> Tensor:
        assert noise_mode == "const"
        self.backbone_runs += 1
        return ws[:, :1, :1].reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4)

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = None,
        deterministic: bool = True,
    ) -> Output:
        assert deterministic
        assert len(planes) == len(ws) == len(c)
        self.batches.append(len(c))
        yaw, pitch, _ = orbit_angles(unpack_label(c)[0])
        image = torch.stack([planes[:, 0, 0, 0, 0], yaw, pitch], dim=1)[:, :, None, None].expand(
            -1, -1, SIZE, SIZE
        )
        r = neural_rendering_resolution or RAW_SIZE
        raw = torch.linspace(-1, 1, r * r).reshape(1, 1, r, r).expand(len(c), 3, r, r)
        depth = (2 + yaw)[:, None, None, None].expand(-1, 1, r, r)
        alpha = (torch.arange(r) < r // 2).float().expand(len(c), 1, r, r)
        return Output(image, raw, depth, alpha)


def identity(value: float) -> Tensor:
    return torch.full((1, 3, 5), value)


def level(value: float) -> int:
    """Grey level of a value in [-1, 1], by the statement of the data format: value = level / 127.5
    - 1.
    """
    return round((value + 1) * 127.5)


def test_to_uint8_inverts_the_data_scaling_and_saturates():
    levels = torch.arange(256).reshape(1, 1, 256).expand(3, 2, 256)
    np.testing.assert_array_equal(
        grids.to_pictures(levels / 127.5 - 1), levels.movedim(0, -1).numpy()
    )
    odd = torch.tensor([-7.0, 7.0, float("nan")]).reshape(3, 1, 1)
    assert grids.to_pictures(odd).tolist() == [[[0, 255, 0]]]


def test_tile_puts_every_pixel_in_its_place():
    images = np.random.RandomState(0).randint(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    picture = grids.tile(images, 2, 3)
    assert picture.shape == (8, 15, 3)
    for row in range(8):
        for column in range(15):
            expected = images[(row // 4) * 3 + column // 5, row % 4, column % 5]
            assert (picture[row, column] == expected).all()
    with pytest.raises(ValueError, match="6 pictures"):
        grids.tile(images, 2, 2)


@pytest.mark.parametrize(("small", "large"), [(4, 8), (3, 8), (7, 4), (5, 5)])
def test_enlarge_repeats_the_nearest_pixel(small: int, large: int):
    images = np.random.RandomState(1).randint(0, 256, (2, small, small, 3), dtype=np.uint8)
    result = grids.enlarge(images, large)
    centres = (np.arange(small) + 0.5) / small
    for i in range(large):
        for j in range(large):
            row, column = (
                int(np.abs(centres - (index + 0.5) / large).argmin()) for index in (i, j)
            )
            assert (result[:, i, j] == images[:, row, column]).all()


def test_depth_is_brighter_when_nearer_and_black_behind():
    depth = torch.linspace(2, 3, 16).reshape(1, 1, 4, 4)
    alpha = torch.ones_like(depth)
    alpha[..., 3] = 0.1
    shaded = grids.shade_depth(depth, alpha)[0]
    assert (shaded[:, 3] == 0).all()
    assert (shaded[..., 0] == shaded[..., 1]).all()
    assert (shaded[..., 0] == shaded[..., 2]).all()
    solid = shaded[:, :3, 0].flatten().astype(int)
    assert (np.diff(solid) <= 0).all()
    assert solid[0] == 255
    assert solid[-1] == level(2 * grids.FARTHEST_GREY - 1)


def test_depth_shows_contrast_where_the_surface_is():
    """As on a head: most of it within a fifth of the range, behind it a little of a neck."""
    face, neck = torch.linspace(2.4, 2.5, 90), torch.linspace(2.5, 2.9, 10)
    depth = torch.cat([face, neck]).reshape(1, 1, 10, 10)
    shaded = grids.shade_depth(depth, torch.ones_like(depth))[0, ..., 0].flatten().astype(int)
    assert shaded[0] - shaded[89] > 60
    assert (np.diff(shaded) <= 0).all()


def test_depth_scale_is_shared_and_ignores_the_background():
    depth = torch.stack(
        [torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 50.0)]
    )
    alpha = torch.tensor([1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    near, far, background = (int(picture.max()) for picture in grids.shade_depth(depth, alpha))
    assert near == 255
    assert far == level(2 * grids.FARTHEST_GREY - 1)
    assert background == 0
    assert (grids.shade_depth(depth, torch.zeros_like(alpha)) == 0).all()
    assert (grids.shade_depth(depth[:1], alpha[:1]) > 0).all()  # one depth everywhere


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e6])
def test_depths_look_the_same_in_any_unit(unit: float):
    depth = torch.linspace(2.4, 2.9, 16).reshape(1, 1, 4, 4)
    plain, scaled = (grids.shade_depth(one, torch.ones_like(one)) for one in (depth, depth * unit))
    assert np.abs(plain.astype(int) - scaled).max() <= 1


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_yaw_strip_shows_the_yaws_in_order_with_one_backbone_run(batch: int):
    scene, yaws = YawScene(), [-0.5, -0.25, 0.0, 0.25, 0.5]
    strip = grids.render_views(scene, identity(0.3), ORBIT.label(yaws, 0.1), batch=batch)
    assert scene.backbone_runs == 1
    assert max(scene.batches) <= batch
    assert {name: picture.shape for name, picture in strip.items()} == dict.fromkeys(
        grids.ROWS, (5, SIZE, SIZE, 3)
    )
    for picture, yaw in zip(strip["image"], yaws, strict=True):
        assert np.abs(picture.reshape(-1, 3) - [level(0.3), level(yaw), level(0.1)]).max() <= 1
    greys = strip["depth"][:, 0, 0, 0].astype(int)
    assert (np.diff(greys) < 0).all()  # larger yaw is farther in this scene
    assert (strip["depth"][:, :, SIZE // 2 :] == 0).all()
    blocks = strip["raw"][0].reshape(RAW_SIZE, 2, RAW_SIZE, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(strip["raw"][0])) == RAW_SIZE**2


def test_rendering_resolution_is_passed_on():
    strip = grids.render_views(
        YawScene(), identity(0.0), ORBIT.label([0.0], 0.0), neural_rendering_resolution=2
    )
    assert len(np.unique(strip["raw"])) == 4


def test_strip_picture_has_views_side_by_side_and_rows_beneath():
    strip = grids.render_views(YawScene(), identity(0.0), ORBIT.label([-0.4, 0.4], 0.0))
    picture = grids.stack_rows(strip, ["depth", "image"])
    assert picture.shape == (2 * SIZE, 2 * SIZE, 3)
    for view in range(2):
        columns = slice(view * SIZE, (view + 1) * SIZE)
        np.testing.assert_array_equal(picture[:SIZE, columns], strip["depth"][view])
        np.testing.assert_array_equal(picture[SIZE:, columns], strip["image"][view])


def test_identity_grid_has_a_row_an_identity_and_blocks_of_colour_raw_and_depth():
    scene, yaws = YawScene(), [-0.4, 0.0, 0.4]
    ws = torch.cat([identity(-0.5), identity(0.5)])
    picture = grids.identity_grid(scene, ws, ORBIT.label(yaws, 0.0))
    assert picture.shape == (2 * SIZE, 9 * SIZE, 3)
    for row, one in enumerate(ws.split(1)):
        strip = grids.render_views(scene, one, ORBIT.label(yaws, 0.0))
        cells = picture[row * SIZE : (row + 1) * SIZE].reshape(SIZE, 9, SIZE, 3).swapaxes(0, 1)
        np.testing.assert_array_equal(
            cells, np.concatenate([strip["image"], strip["raw"], strip["depth"]])
        )


def test_save_png_keeps_every_pixel_and_tells_when_it_cannot(tmp_path):
    picture = np.random.RandomState(2).randint(0, 256, (5, 7, 3), dtype=np.uint8)
    grids.save_png(tmp_path / "a" / "x.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "x.png")), picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        grids.save_png(tmp_path / "file" / "x.png", picture)


def test_normals_are_a_row_like_the_others():
    scene = YawScene()
    views = grids.render_views(
        scene, identity(0.0), ORBIT.label([0.0, 0.5], 0.0), kinds=("normals", "image")
    )
    assert {kind: picture.shape for kind, picture in views.items()} == {
        "normals": (2, SIZE, SIZE, 3),
        "image": (2, SIZE, SIZE, 3),
    }
    assert views["normals"][0, 0, 0].tolist() == [255, 128, 128]  # to the right
    red, green, blue = views["normals"][1, 0, 0].astype(int)
    assert red < 255
    assert green == 128
    assert blue > 128  # the camera has moved to the right: the surface turns towards it
    assert (views["normals"][:, :, -1] == 0).all()  # background
