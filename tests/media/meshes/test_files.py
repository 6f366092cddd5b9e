"""Mesh files: judged by Khronos' validator and by trimesh; textures where they belong."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from dnnlib.console import UserError
from media.meshes.colours import is_closed, without_folds
from media.meshes.files import glb_bytes, printable, save_mesh
from media.meshes.shapes import extract_mesh
from open_eg3d import SHIPPED_MODEL, load_generator, map_latents, mesh, seed_latents
from tests.media.meshes.test_shapes import EVERYWHERE, PLANES, RADIUS, Scene, ball, radii

VALIDATE = """
const validator = require('gltf-validator');
const content = new Uint8Array(require('fs').readFileSync(process.argv[1]));
validator.validateBytes(content, {maxIssues: 20}).then(
    (report) => console.log(JSON.stringify(report)),
    (error) => { console.error(error); process.exit(1); });
"""


@cache
def validator_folder() -> Path:
    """Where `make` installs the validator."""
    return Path(sys.prefix) / "gltf-validator" / "node_modules"


def validate(path: Path) -> dict[str, Any]:
    """Report of Khronos' glTF validator on a file."""
    node = Path(sys.prefix) / "bin" / "node"
    done = subprocess.run(
        [node, "-e", VALIDATE, path],
        env={"NODE_PATH": str(validator_folder())},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_valid(path: Path) -> dict[str, Any]:
    """No error, no warning, no hint."""
    report = validate(path)
    assert report["issues"]["numErrors"] == report["issues"]["numWarnings"] == 0, report["issues"][
        "messages"
    ]
    assert report["issues"]["numHints"] == 0, report["issues"]["messages"]
    return report["info"]


@pytest.fixture(scope="module")
def colored() -> trimesh.Trimesh:
    return extract_mesh(Scene(ball(steepness=1e5)), PLANES, EVERYWHERE, 32, 10.0)


@pytest.fixture(scope="module")
def textured() -> trimesh.Trimesh:
    return extract_mesh(
        Scene(ball(steepness=1e5)), PLANES, EVERYWHERE, 32, 10.0, texture=256, max_faces=600
    )


def test_colored_glb_is_valid(colored: trimesh.Trimesh, tmp_path: Path) -> None:
    save_mesh(tmp_path / "a.glb", colored)
    info = assert_valid(tmp_path / "a.glb")
    assert info["totalTriangleCount"] == len(colored.faces)
    assert info["totalVertexCount"] == len(colored.vertices)
    assert info["materialCount"] == 1
    assert not info["hasTextures"]


def test_textured_glb_is_valid(textured: trimesh.Trimesh, tmp_path: Path) -> None:
    save_mesh(tmp_path / "a.glb", textured)
    info = assert_valid(tmp_path / "a.glb")
    assert info["hasTextures"]
    assert [
        (image["image"]["width"], image["image"]["height"])
        for image in info["resources"]
        if "image" in image
    ] == [(256, 256)]


def test_the_validator_finds_faults(colored: trimesh.Trimesh, tmp_path: Path) -> None:
    content = bytearray(glb_bytes(colored))
    (length,) = struct.unpack_from("<I", content, 12)
    struct.pack_into("<f", content, 20 + length + 8, float("nan"))  # the first coordinate
    (tmp_path / "a.glb").write_bytes(content)
    assert validate(tmp_path / "a.glb")["issues"]["numErrors"] > 0


def test_a_vertex_without_a_normal_gets_one(tmp_path: Path) -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    folded = trimesh.Trimesh(
        points, [[0, 1, 2], [0, 2, 1]], vertex_colors=np.full((3, 4), 255, np.uint8), process=False
    )
    save_mesh(tmp_path / "a.glb", folded)
    assert_valid(tmp_path / "a.glb")


def texture_error(mesh: trimesh.Trimesh, picture: np.ndarray, uv: np.ndarray) -> float:
    """Largest difference between a texture (v upward) at triangles' centres and the scene's colour
    there.
    """
    middle = uv[mesh.faces].mean(axis=1)
    size = picture.shape[0]
    rows, columns = ((1 - middle[:, 1]) * size).astype(int), (middle[:, 0] * size).astype(int)
    centre = np.asarray(mesh.vertices)[mesh.faces].mean(axis=1)
    return float(np.abs(picture[rows, columns] / 255.0 - (centre + 0.5)).max())


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_texture_shows_each_place_its_colour(
    textured: trimesh.Trimesh, tmp_path: Path, kind: str
) -> None:
    save_mesh(tmp_path / f"head.{kind}", textured)
    mesh = trimesh.load_mesh(tmp_path / f"head.{kind}", process=False)
    assert isinstance(mesh.visual, trimesh.visual.TextureVisuals)
    material: Any = mesh.visual.material
    picture = material.baseColorTexture if kind == "glb" else material.image
    # two texels of a ball this size
    assert texture_error(mesh, np.asarray(picture.convert("RGB")), mesh.visual.uv) < 0.03
    assert len(mesh.faces) == len(textured.faces)
    assert abs(len(mesh.faces) - 600) < 60
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=0.01)
    outward = mesh.triangles_center - np.array([0.05, -0.1, 0.02])
    assert ((mesh.face_normals * outward).sum(axis=1) > 0).all()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight  # cut open in the texture only


def test_obj_names_files_that_are_there(textured: trimesh.Trimesh, tmp_path: Path) -> None:
    save_mesh(tmp_path / "head.obj", textured)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.mtl", "head.obj", "head.png"]
    assert "mtllib head.mtl" in (tmp_path / "head.obj").read_text()
    assert "map_Kd head.png" in (tmp_path / "head.mtl").read_text()
    assert Image.open(tmp_path / "head.png").size == (256, 256)


def test_ply_holds_no_texture(textured: trimesh.Trimesh, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no texture"):
        save_mesh(tmp_path / "head.ply", textured)
    assert not list(tmp_path.iterdir())


def test_every_texel_is_filled(textured: trimesh.Trimesh) -> None:
    """Black would bleed in from between the charts; no point of the ball is black."""
    assert isinstance(textured.visual, trimesh.visual.TextureVisuals)
    assert np.asarray(textured.visual.material.image).max(axis=2).min() > 60


def test_the_same_twice(textured: trimesh.Trimesh) -> None:
    again = extract_mesh(
        Scene(ball(steepness=1e5)), PLANES, EVERYWHERE, 32, 10.0, texture=256, max_faces=600
    )
    assert glb_bytes(again) == glb_bytes(textured)


def test_fewer_triangles_keep_the_shape() -> None:
    mesh = extract_mesh(Scene(ball(steepness=1e5)), PLANES, EVERYWHERE, 48, 10.0, max_faces=400)
    assert abs(len(mesh.faces) - 400) < 40
    assert mesh.is_watertight
    np.testing.assert_allclose(radii(mesh), RADIUS, atol=0.01)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03)


@torch.no_grad()
def test_world_axes_are_gltfs(tmp_path: Path) -> None:
    """Positions are written as they are: y up, the front towards +z, one unit a metre."""
    mesh = extract_mesh(
        Scene(lambda p: 10 + 1e4 * (0.2 - (p / torch.tensor([1.0, 2.0, 0.5])).norm(dim=-1))),
        PLANES,
        EVERYWHERE,
        64,
        10.0,
    )
    save_mesh(tmp_path / "a.glb", mesh)
    found = trimesh.load_mesh(tmp_path / "a.glb", process=False)
    np.testing.assert_allclose(found.bounds, [[-0.2, -0.4, -0.1], [0.2, 0.4, 0.1]], atol=5e-3)


def test_what_reducing_folds_together_goes() -> None:
    """A tetrahedron with a flap of two faces back to back, and a face without area."""
    solid = [[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]]
    folded = np.array([*solid, [0, 1, 4], [1, 0, 4], [2, 2, 3]], dtype=np.int32)
    assert not is_closed(folded)
    assert without_folds(folded).tolist() == solid
    assert is_closed(without_folds(folded))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_reduced_heads_are_closed(seed: int) -> None:
    """The shipped model's, of which reducing alone pinches most; and they stay where they were."""
    generator = load_generator(SHIPPED_MODEL)
    ws = map_latents(generator, seed_latents(generator, seed), truncation_psi=0.7)
    whole = mesh(generator, ws, resolution=128)
    fewer = mesh(generator, ws, resolution=128, max_faces=20_000)
    for head in (whole, fewer, printable(fewer)):
        assert head.is_watertight
        assert head.is_winding_consistent
        assert head.body_count == 1
        assert head.euler_number == 2
    assert 17_900 <= len(fewer.faces) <= 20_000
    assert fewer.volume == pytest.approx(whole.volume, rel=0.005)
