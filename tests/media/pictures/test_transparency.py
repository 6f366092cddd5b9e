"""Pictures of the object alone: what is taken out is the background, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dnnlib.console import UserError
from media.pictures.transparency import (
    split_in_two,
    straight_colours,
    transparent_views,
    wall_distance,
)
from tests.media.pictures.test_grids import ORBIT, Output, identity
from training.cameras import unpack_label
from training.config.settings import RenderingConfig
from training.rendering.rays import sample_rays

SIZE = 32
RADIUS, WALL = 0.3, -0.45  # of a ball at the origin; where on the z axis the wall stands
BALL_COLOUR, WALL_COLOUR = 0.5, -0.5
VIEWS = ORBIT.label([-0.2, 0.0, 0.2], 0.0)


class BallBeforeWall:
    """By exact ray casting: a ball, before a wall or before nothing but a background colour."""

    def __init__(self, has_wall: bool, background: tuple[float, float, float] | None) -> None:
        self.has_wall = has_wall
        self.rendering = RenderingConfig(ray_start=2.0, ray_end=4.0, background=background)

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        raise NotImplementedError

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def planes(self, ws: Tensor, noise_mode: Any = "const") -> Tensor:
        assert noise_mode == "const"
        return ws.new_zeros(len(ws), 3, 1, 2, 2)

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
        assert neural_rendering_resolution is None
        end = self.rendering.ray_end
        assert isinstance(end, float)
        origins, directions = sample_rays(*unpack_label(c), SIZE)
        middle = -(origins * directions).sum(-1)
        square = RADIUS**2 - origins.square().sum(-1) + middle**2
        to_ball = middle - square.clamp(min=0).sqrt()
        to_wall = (WALL - origins[..., 2]) / directions[..., 2]
        sees_ball = (square > 0) & (to_ball < end)
        sees_wall = ~sees_ball & self.has_wall & (to_wall < end)
        behind = -1.0 if self.rendering.background is None else self.rendering.background[0] * 2 - 1
        colour = torch.where(sees_ball, BALL_COLOUR, torch.where(sees_wall, WALL_COLOUR, behind))
        depth = torch.where(sees_ball, to_ball, to_wall)
        square_shape = (1, 1, SIZE, SIZE)
        image = colour.view(square_shape).expand(1, 3, SIZE, SIZE)
        alpha = (sees_ball | sees_wall).float().view(square_shape)
        return Output(image, image, depth.view(square_shape), alpha)


def ball_pixels(c: Tensor) -> np.ndarray:
    """Which pixels (K, SIZE, SIZE) of cameras c (K, 25) see the ball."""
    scene, ws = BallBeforeWall(False, None), identity(0.0)
    planes = scene.planes(ws)
    return torch.cat([scene.render(planes, ws, one).alpha[:, 0] for one in c.split(1)]).numpy() > 0


@given(
    st.floats(0, 1),
    st.floats(0.05, 1),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_colours_put_on_a_background_come_off_it_again(
    colour: float, alpha: float, behind: tuple[float, float, float]
) -> None:
    a, background = torch.full((1, 1, 2, 2), alpha), torch.tensor(behind)
    image = (a * colour + (1 - a) * background.view(3, 1, 1)) * 2 - 1
    found = straight_colours(image, a, background)
    torch.testing.assert_close(found, torch.full_like(found, colour), atol=1e-5, rtol=1e-5)


def test_a_plain_background_gives_way_to_alpha() -> None:
    scene, ws = BallBeforeWall(False, (0.2, 0.2, 0.2)), identity(0.0)
    pictures = transparent_views(scene, scene.planes(ws), ws, VIEWS)
    assert pictures.shape == (3, SIZE, SIZE, 4)
    sees_ball = ball_pixels(VIEWS)
    assert 50 < sees_ball.sum() < 0.9 * sees_ball.size
    np.testing.assert_array_equal(pictures[..., 3], np.where(sees_ball, 255, 0))
    assert (pictures[sees_ball][:, :3] == round((BALL_COLOUR + 1) * 127.5)).all()


def test_a_wall_is_told_by_its_depth() -> None:
    scene, ws = BallBeforeWall(True, None), identity(0.0)
    view = scene.planes(ws), ws, VIEWS
    assert (transparent_views(scene, *view)[..., 3] == 255).all()  # it is part of the planes
    distance = wall_distance(scene, *view)
    pictures = transparent_views(scene, *view, wall=distance)
    sees_ball = ball_pixels(VIEWS)
    np.testing.assert_array_equal(pictures[..., 3], np.where(sees_ball, 255, 0))
    assert (pictures[sees_ball][:, :3] == round((BALL_COLOUR + 1) * 127.5)).all()
    assert scene.rendering.ray_end == 4.0  # as before


@pytest.mark.parametrize(
    ("has_wall", "background", "words"),
    [(True, (1.0, 1.0, 1.0), "plain colour"), (False, None, "no wall")],
)
def test_where_there_is_no_wall_one_line_says_so(
    has_wall: bool, background: tuple[float, float, float] | None, words: str
) -> None:
    scene, ws = BallBeforeWall(has_wall, background), identity(0.0)
    with pytest.raises(UserError, match=words):
        wall_distance(scene, scene.planes(ws), ws, VIEWS)


def test_two_groups_are_parted_in_the_middle() -> None:
    border, share = split_in_two(torch.tensor([3.2, 2.0, 2.2, 3.0]))
    assert border == pytest.approx(2.6)
    assert share > 0.95
    assert split_in_two(torch.linspace(0, 1, 101))[1] == pytest.approx(0.75, abs=0.01)
    assert split_in_two(torch.ones(5)) == (float("inf"), 0.0)
