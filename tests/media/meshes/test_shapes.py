"""Meshes and volumes of analytic scenes: radius, volume, colours, orientation, what belongs to the
object, bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
import trimesh
from scipy import integrate, optimize
from skimage.measure import marching_cubes
from torch import Tensor

from dnnlib.console import UserError
from media.meshes import density, fusion, region, shapes
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.config.settings import RenderingConfig

CENTRE = (0.05, -0.1, 0.02)
RADIUS = 0.25
ORBIT = 2.7
PLANES = torch.zeros(1, 3, 1, 128, 128)

Density = Callable[[Tensor], Tensor]


def ball(
    radius: float = RADIUS,
    centre: tuple[float, ...] = CENTRE,
    steepness: float = 400.0,
    level: float = 10.0,
) -> Density:
    """Density that falls linearly with the distance from the centre and is `level` at `radius`."""
    return lambda p: level + steepness * (radius - (p - torch.tensor(centre)).norm(dim=-1))


def union(*densities: Density) -> Density:
    return lambda p: torch.stack([density(p) for density in densities]).amax(dim=0)


class Scene:
    """A density and a colour that is the position: red, green, blue = 0.5 + x, y, z."""

    def __init__(self, density: Density, **rendering: Any) -> None:
        self.density = density
        self.rendering = RenderingConfig(**{"ray_start": "auto", "ray_end": "auto", **rendering})
        self.asked: list[int] = []

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        assert len(points) == len(planes) == 1
        self.asked.append(points.shape[1])
        return self.density(points)[..., None]

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_density(points, planes), torch.cat([points + 0.5, points], dim=-1)


def orbit_cameras(focal: float, yaws: int = 8, reach: float = math.pi) -> Tensor:
    """Cameras on three circles; yaws from -reach to reach."""
    yaw, pitch = torch.meshgrid(
        torch.linspace(-reach, reach, yaws), torch.tensor([-0.4, 0.0, 0.4]), indexing="ij"
    )
    return pack_label(orbit_pose(yaw.flatten(), pitch.flatten(), ORBIT), pinhole_intrinsics(focal))


EVERYWHERE = orbit_cameras(1.2)  # the whole box is in every picture
FRONTAL = pack_label(orbit_pose(0.0, 0.0, ORBIT), pinhole_intrinsics(1.2))[None]


def extract(
    density: Density,
    resolution: int = 48,
    level: float | None = 10.0,
    cameras: Tensor = EVERYWHERE,
    **options,
) -> trimesh.Trimesh:
    return shapes.extract_mesh(Scene(density), PLANES, cameras, resolution, level, **options)


def colors(mesh: trimesh.Trimesh) -> np.ndarray:
    assert isinstance(mesh.visual, trimesh.visual.ColorVisuals)
    return mesh.visual.vertex_colors


def radii(mesh: trimesh.Trimesh, centre: tuple[float, ...] = CENTRE) -> np.ndarray:
    return np.linalg.norm(mesh.vertices - np.array(centre), axis=1)


# --------------------------------------------------------------------------------------------------
# The surface


@pytest.mark.parametrize(
    ("level", "radius"), [(10.0, RADIUS), (-30.0, RADIUS + 0.1), (30.0, RADIUS - 0.05)]
)
def test_ball_has_its_radius_volume_and_outward_normals(level: float, radius: float):
    mesh = extract(ball(), level=level)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    np.testing.assert_allclose(radii(mesh), radius, atol=1e-3)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    outward = mesh.triangles_center - np.array(CENTRE)
    assert ((mesh.face_normals * outward).sum(axis=1) > 0).all()


def test_axes_are_the_worlds():
    long = torch.tensor([0.4, 0.2, 0.1])
    mesh = extract(lambda p: 10 + 100 * (1 - (p / long).norm(dim=-1)), 64)
    np.testing.assert_allclose(mesh.bounds, [[-0.4, -0.2, -0.1], [0.4, 0.2, 0.1]], atol=4e-3)


def test_box_side_scales_the_world():
    scene = Scene(ball(0.5, (0.1, 0.2, 0.0)), box_warp=1.6)
    mesh = shapes.extract_mesh(scene, PLANES, EVERYWHERE, 48, 10.0)
    np.testing.assert_allclose(radii(mesh, (0.1, 0.2, 0.0)), 0.5, atol=2e-3)


def test_vertex_colours_are_the_models_at_the_vertices():
    mesh = extract(ball(steepness=1e6))
    expected = np.rint((mesh.vertices + 0.5) * 255)
    assert np.abs(colors(mesh)[:, :3] - expected).max() <= 1
    assert (colors(mesh)[:, 3] == 255).all()


def test_samples_exactly_on_the_level_do_no_harm():
    # a terrace at 10 out to 8.5 / 32
    mesh = extract(lambda p: (p.abs().sum(dim=-1) * -32).round() + 18, 32)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * (8.5 / 32) ** 3, rel=0.05)


# --------------------------------------------------------------------------------------------------
# Slabs


def bumpy(p: Tensor) -> Tensor:
    return 10 + 300 * (0.3 - p.norm(dim=-1) + 0.03 * torch.sin(40 * p).prod(dim=-1))


@pytest.mark.parametrize("layers", [2, 3, 7, 41, 42, 1000])
def test_the_mesh_does_not_depend_on_the_slabs_thickness(layers: int):
    whole = extract(bumpy, 40, slab_samples=10**9)
    slabs = extract(bumpy, 40, slab_samples=layers * 42**2)
    assert whole.is_watertight
    np.testing.assert_array_equal(slabs.faces, whole.faces)
    np.testing.assert_allclose(slabs.vertices, whole.vertices, atol=1e-6)


def test_the_mesh_is_that_of_the_whole_grid():
    centres = (np.arange(-1, 41) + 0.5) / 40 - 0.5
    grid = torch.tensor(
        np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1),
        dtype=torch.float32,
    )
    vertices, faces, _, _ = marching_cubes(bumpy(grid).numpy(), 10.0)
    reference = trimesh.Trimesh(vertices / 40 + centres[0], faces)
    mesh = extract(bumpy, 40, slab_samples=5 * 42**2)
    assert mesh.volume == pytest.approx(abs(reference.volume), rel=1e-5)
    assert mesh.area == pytest.approx(reference.area, rel=1e-5)
    assert len(mesh.vertices) == len(reference.vertices)


@pytest.mark.parametrize("resolution", [16, 48, 80])
def test_no_more_points_or_layers_at_once_than_allowed(resolution: int, monkeypatch):
    for module in (density, region):
        monkeypatch.setattr(module, "CHUNK_POINTS", 1000)
    scene = Scene(ball())
    grid = density.density_grid(scene, PLANES, EVERYWHERE, resolution, 10.0)
    samples = 3 * 82**2
    slabs = list(density.density_slabs(grid, padding=1, slab_samples=samples))
    assert max(scene.asked) <= 1000
    assert max(slab.size for _, slab in slabs) <= samples
    covered = [first + layer for first, slab in slabs for layer in range(len(slab))]
    assert sorted(set(covered)) == list(range(-1, resolution + 1))
    assert len(covered) == resolution + 2 + len(slabs) - 1  # one layer in common


# --------------------------------------------------------------------------------------------------
# The object and not the walls


def wall(axis: int, sign: int) -> Density:
    return lambda p: 10 + 400 * (sign * p[..., axis] - 0.44)


def test_density_on_one_wall_is_left_out():
    mesh = extract(union(ball(), wall(0, 1)))
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=1e-3)


def test_density_on_all_walls_is_left_out():
    mesh = extract(union(ball(), *(wall(axis, sign) for axis in range(3) for sign in (-1, 1))))
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=1e-3)
    assert mesh.volume > 0


def test_floaters_go_unless_wanted():
    scene = union(ball(), ball(0.05, (-0.4, 0.3, 0.3)))
    assert extract(scene).body_count == 1
    everything = extract(scene, largest_only=False)
    assert everything.body_count == 2
    assert everything.is_watertight


def test_a_hollow_ball_is_its_outside():
    mesh = extract(lambda p: 10 + 400 * (0.08 - (p.norm(dim=-1) - 0.3).abs()))
    np.testing.assert_allclose(radii(mesh, (0, 0, 0)), 0.38, atol=2e-3)


def test_what_no_camera_sees_is_empty():
    narrow = orbit_cameras(4.0, yaws=3, reach=0.3)  # sees some 0.34 to either side at the origin
    hidden = ball(0.2, (0.0, 0.6, 0.0))  # larger than the object, but above all pictures
    mesh = extract(union(ball(0.15, (0.0, 0.0, 0.0)), hidden), 64, cameras=narrow)
    np.testing.assert_allclose(radii(mesh, (0, 0, 0)), 0.15, atol=1e-3)


def test_what_lies_before_the_near_limit_is_empty():
    scene = Scene(
        union(ball(0.1, (0.0, 0.0, 0.0)), ball(0.2, (0.0, 0.0, 0.55))), ray_start=2.4, ray_end=3.3
    )
    mesh = shapes.extract_mesh(scene, PLANES, FRONTAL, 64, 10.0)
    np.testing.assert_allclose(radii(mesh, (0, 0, 0)), 0.1, atol=1e-3)


def test_an_object_that_leaves_the_box_ends_flat():
    mesh = extract(lambda p: 10 + 400 * (0.2 - p[..., ::2].norm(dim=-1)), 50)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds[:, 1], [-0.49, 0.49], atol=0.01)
    length = np.ptp(mesh.bounds[:, 1])
    assert mesh.volume == pytest.approx(math.pi * 0.2**2 * length, rel=0.02)


def test_margin_is_the_distance_to_the_border_of_a_frustum():
    seen = region.seen_region(
        Scene(ball(), ray_start=2.3, ray_end=3.0),
        PLANES,
        pack_label(orbit_pose(0.0, 0.0, ORBIT), pinhole_intrinsics(4.0))[None],
    )
    points = torch.tensor(
        [[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.0, -0.4, 0.0], [0.0, 0.0, 0.35], [0.0, 0.0, -0.35]]
    )
    half_width = ORBIT / 4 / 2
    expected = [0.3, half_width - 0.3, half_width - 0.4, ORBIT - 0.35 - 2.3, 3.0 - ORBIT - 0.35]
    np.testing.assert_allclose(seen.margin(points), expected, atol=0.01)


# --------------------------------------------------------------------------------------------------
# The level


@pytest.mark.parametrize("steepness", [300.0, 2000.0])
def test_level_is_the_density_where_half_of_the_light_is_left(steepness: float):
    def optical_depth(reach: float) -> float:
        return integrate.quad(
            lambda s: np.logaddexp(0, 10 + steepness * s - 1), -0.2, reach, limit=200
        )[0]

    depth = optimize.brentq(lambda reach: optical_depth(reach) - math.log(2), -0.1, 0.1)
    scene = Scene(ball(0.3, (0.0, 0.0, 0.0), steepness))
    # a thin beam through the centre
    far_away = pack_label(orbit_pose(0.0, 0.0, 50.0), pinhole_intrinsics(1000.0))[None]
    level = region.surface_level(scene, PLANES, region.seen_region(scene, PLANES, far_away))
    assert level == pytest.approx(10 + steepness * depth, abs=0.02 * steepness**0.5)


def at_found_level(density: Density) -> trimesh.Trimesh:
    """The surface of the level that `surface_level` finds."""
    scene = Scene(density)
    seen = region.seen_region(scene, PLANES, EVERYWHERE)
    return extract(density, level=region.surface_level(scene, PLANES, seen))


def test_automatic_level_finds_the_surface_wherever_the_density_lies():
    for level in (-3.0, 10.0, 60.0):
        mesh = at_found_level(ball(steepness=5000.0, level=level))
        np.testing.assert_allclose(radii(mesh), RADIUS, atol=0.015)


def test_level_of_a_step_lies_inside_the_step():
    mesh = at_found_level(
        lambda p: torch.where((p - torch.tensor(CENTRE)).norm(dim=-1) < RADIUS, 40.0, -20.0)
    )
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=1 / 48)


@pytest.mark.parametrize(("inside", "expected"), [(-2.0, -6.0), (0.5, -4.75)])
def test_level_of_a_fog_is_the_middle_of_its_densities(inside: float, expected: float):
    scene = Scene(lambda p: torch.where(p.norm(dim=-1) < 0.3, inside, -10.0))
    assert region.surface_level(
        scene, PLANES, region.seen_region(scene, PLANES, EVERYWHERE)
    ) == pytest.approx(expected)


def test_no_surface_is_one_line_with_the_range():
    with pytest.raises(
        UserError, match=r"no surface at density 500: .*from -\d+.* to \d+.*--shape-level"
    ):
        extract(ball(), level=500.0)
    with pytest.raises(UserError, match="no surface"):
        extract(lambda p: torch.full_like(p[..., 0], 3.0), level=None)


def test_cameras_that_look_elsewhere_are_an_error():
    away = FRONTAL.clone()
    away[:, [2, 10]] *= -1
    with pytest.raises(UserError, match="no camera"):
        extract(ball(), level=None, cameras=away)


# --------------------------------------------------------------------------------------------------
# The surface that depth shows

STEEPNESS = 5000.0
# mean depth, below the radius, at which a straight ray ends: the integral of its transmittance
FADED = integrate.quad(lambda s: math.exp(-STEEPNESS * s**2 / 2), 0, 0.2)[0]


def test_surface_lies_where_rays_end():
    mesh = extract(ball(steepness=STEEPNESS), level=None)
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    assert np.median(radii(mesh)) == pytest.approx(RADIUS - FADED, abs=FADED / 3)
    assert np.median(radii(at_found_level(ball(steepness=STEEPNESS)))) > RADIUS - FADED / 2


@pytest.mark.parametrize("unit", ["world", "box"])
def test_surface_of_a_larger_box_is_as_much_larger(unit: str):
    """Where densities count by boxes light fades at the same share of it."""
    gain = 1.6 if unit == "world" else 1.0
    larger = ball(1.6 * RADIUS, (0.0, 0.0, 0.0), STEEPNESS / 1.6 / gain)
    scene = Scene(larger, box_warp=1.6, length_unit=unit)
    mesh = shapes.extract_mesh(scene, PLANES, orbit_cameras(1.2, 8), 48)
    expected = 1.6 * (RADIUS - FADED)
    assert np.median(radii(mesh, (0, 0, 0))) == pytest.approx(expected, abs=1.6 * FADED / 2)


def test_what_no_camera_sees_is_closed_by_the_density():
    scene = Scene(ball(0.3, (0.0, 0.0, 0.0), STEEPNESS))
    cameras = orbit_cameras(2.0, yaws=5, reach=0.5)
    mesh = shapes.extract_mesh(scene, PLANES, cameras, 48)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    distance = radii(mesh, (0, 0, 0))
    in_front, behind = mesh.vertices[:, 2] > 0.2, mesh.vertices[:, 2] < -0.2
    assert np.median(distance[in_front]) == pytest.approx(0.3 - FADED, abs=FADED / 3)
    assert np.median(distance[behind]) > 0.3 - FADED / 2


def test_inner_walls_and_floaters_go():
    hollow = ball(0.3, (0.0, 0.0, 0.0), STEEPNESS)
    scene = union(
        lambda p: torch.minimum(hollow(p), 10 + STEEPNESS * (p.norm(dim=-1) - 0.1)),
        ball(0.04, (-0.35, 0.35, 0.3), STEEPNESS),
    )
    mesh = extract(scene, level=None)
    assert mesh.body_count == 1
    assert mesh.euler_number == 2
    assert radii(mesh, (0, 0, 0)).min() > 0.25


def test_a_speck_that_no_depth_map_shows_has_a_surface_of_one_density(
    capsys: pytest.CaptureFixture[str],
):
    """A faint ball smaller than a cell, about the centre of one."""
    speck = ball(0.008, (0.5 / 48,) * 3, 500.0)
    grid = density.density_grid(Scene(speck), PLANES, EVERYWHERE, 48, 10.0)
    assert fusion.surface_grid(grid) is grid
    assert "the mesh is that of one density" in capsys.readouterr().err
    assert extract(speck).is_watertight


@pytest.mark.parametrize("level", [None, 10.0])
def test_normals_are_those_of_the_field(level: float | None):
    mesh = extract(ball(steepness=STEEPNESS), level=level)
    outward = mesh.vertices - np.array(CENTRE)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    cosines = (mesh.vertex_normals * outward).sum(axis=1)
    least = math.cos(math.radians(12.0 if level is None else 1.0))
    assert cosines.min() > least


# --------------------------------------------------------------------------------------------------
# Files


def to_linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", ["ply", "obj", "glb"])
def test_mesh_files_hold_shape_and_colours_and_are_the_same_twice(tmp_path, kind: str):
    for name in ("a", "b"):
        shapes.save_shape(
            tmp_path / f"{name}.{kind}", Scene(ball(steepness=1e5)), PLANES, EVERYWHERE, 32, 10.0
        )
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]
    mesh = trimesh.load_mesh(
        tmp_path / f"a.{kind}", process=False, **{"skip_materials": True} if kind == "glb" else {}
    )
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=2e-3)
    assert mesh.is_watertight
    assert mesh.volume > 0
    expected = mesh.vertices + 0.5
    expected = to_linear(expected) if kind == "glb" else expected
    # trimesh cuts off a GLB's decimals
    assert np.abs(colors(mesh)[:, :3] - expected * 255).max() <= (3 if kind == "glb" else 2)


@pytest.mark.parametrize("max_faces", [None, 2000])
def test_stl_can_be_printed(tmp_path, max_faces: int | None):
    """In millimetres, upright on the bed, one closed solid with outward faces: also where a neck
    is cut off by the box.
    """
    neck = wall(axis=1, sign=-1)
    scene = Scene(union(ball(), lambda p: neck(p).where(p[..., [0, 2]].norm(dim=-1) < 0.1, -50.0)))
    path = tmp_path / "a.stl"
    shapes.save_shape(path, scene, PLANES, EVERYWHERE, 48, 10.0, max_faces=max_faces)
    mesh = trimesh.load_mesh(path)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert mesh.volume > 0
    np.testing.assert_allclose(mesh.bounds[:, 2], [0, 100], atol=1e-3)
    np.testing.assert_allclose(mesh.bounds.sum(axis=0)[:2], 0, atol=1e-3)


def test_stl_has_z_up_and_the_front_towards_minus_y(tmp_path):
    """A ball with a nose towards the frontal camera and a hat."""
    nose = ball(centre=(0.05, -0.1, 0.3), radius=0.08)
    hat = ball(centre=(0.05, 0.2, 0.02), radius=0.08)
    scene = Scene(union(ball(), nose, hat))
    shapes.save_shape(tmp_path / "a.stl", scene, PLANES, EVERYWHERE, 48, 10.0)
    mesh = trimesh.load_mesh(tmp_path / "a.stl")
    front, back = -mesh.bounds[0, 1], mesh.bounds[1, 1]
    tip, top = (
        mesh.vertices[mesh.vertices[:, axis].argsort()[at]] for axis, at in ((1, 0), (2, -1))
    )
    assert front == pytest.approx(back)
    assert tip[2] < 60
    assert abs(tip[0]) < 2
    assert top[1] > 5


@pytest.mark.parametrize("slab_samples", [500, 10**6])
def test_mrc_volume_holds_the_density_at_its_places(tmp_path, slab_samples: int, monkeypatch):
    monkeypatch.setattr(density.density_slabs, "__defaults__", (0, slab_samples))
    shapes.save_shape(tmp_path / "x.mrc", Scene(ball()), PLANES, EVERYWHERE, 20, 10.0)
    assert mrcfile.validate(tmp_path / "x.mrc")
    with mrcfile.open(tmp_path / "x.mrc") as volume:
        data, header = volume.data.copy(), volume.header.copy()
        voxel = volume.voxel_size.copy()
    assert [float(voxel[axis]) for axis in "xyz"] == pytest.approx([0.05] * 3)
    origin = [float(header.origin[axis]) for axis in "xyz"]
    assert origin == pytest.approx([-0.475] * 3)
    for z, y, x in ((3, 9, 12), (10, 4, 8), (9, 12, 17), (18, 18, 1)):
        place = torch.tensor([origin[0] + 0.05 * x, origin[1] + 0.05 * y, origin[2] + 0.05 * z])
        assert data[z, y, x] == pytest.approx(float(ball()(place)), rel=1e-4, abs=1e-3)
    assert float(header.dmin) == data.min()
    assert float(header.dmax) == data.max()
    assert float(header.dmean) == pytest.approx(data.mean(dtype=np.float64), rel=1e-5)
    assert float(header.rms) == pytest.approx(data.std(dtype=np.float64), rel=1e-5)


def test_mrc_is_the_same_twice(tmp_path):
    for name in ("a", "b"):
        shapes.save_shape(tmp_path / f"{name}.mrc", Scene(ball()), PLANES, EVERYWHERE, 12, 10.0)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    assert b"202" not in (tmp_path / "a.mrc").read_bytes()[:1024]  # no date in the header


@pytest.mark.parametrize("kind", shapes.FORMATS)
def test_a_failure_leaves_no_file(tmp_path, kind: str):
    (tmp_path / f"x.{kind}").write_text("old")
    with pytest.raises(UserError, match="no surface"):
        shapes.save_shape(tmp_path / f"x.{kind}", Scene(ball()), PLANES, EVERYWHERE, 16, 500.0)
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{kind}"]
    assert (tmp_path / f"x.{kind}").read_text() == "old"
