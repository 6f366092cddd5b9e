"""Mesh files: PLY, OBJ (with its MTL and PNG where there is a texture), GLB and STL, each whole or
not at all.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.visual import ColorVisuals, TextureVisuals

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from media.glb import (
    ELEMENT_ARRAY_BUFFER,
    FLOAT,
    UNSIGNED_INT,
    Binary,
    glb_container,
    linear_colors,
)

MESH_FORMATS = ("ply", "obj", "glb", "stl")
TEXTURE_FORMATS = ("obj", "glb")
PRINT_HEIGHT = 100.0  # millimetres, of a printed object

# glTF 2.0, section 5.26
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


def save_mesh(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None:
    """Write a mesh with vertex colours or a texture as ply, obj, glb or stl, by the file's ending.

    PLY and OBJ hold vertex colours as they are (sRGB); GLB holds them linear, as its standard
    demands (glTF 2.0, section 3.7.2.1); STL is for printing and holds none.

    Raises:
        UserError: if the file cannot be written, or a PLY or STL should hold a texture.
    """
    path = Path(path)
    if path.suffix == ".glb":
        content = glb_bytes(mesh)
    elif not isinstance(mesh.visual, TextureVisuals):
        shown = printable(mesh) if path.suffix == ".stl" else mesh
        data: Any = shown.export(file_type=path.suffix[1:])
        content = data.encode() if isinstance(data, str) else data
    elif path.suffix == ".obj":
        content = _obj_with_texture(path, mesh, mesh.visual)
    else:
        raise UserError(
            f"{path}: a {path.suffix[1:]} file holds no texture; choose one of"
            f" {', '.join(TEXTURE_FORMATS)}"
        )
    with atomic_write(path) as file:
        file.write(content)


def printable(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """A mesh in millimetres, `PRINT_HEIGHT` high, as programs for printers have it: z up, the front
    towards -y, standing on the plane z = 0 above the origin.
    """
    x, y, z = np.asarray(mesh.vertices, dtype=np.float64).T
    points = np.stack([x, -z, y], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    foot = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    return trimesh.Trimesh(
        (points - foot) * (PRINT_HEIGHT / (high[2] - low[2])), mesh.faces, process=False
    )


def _obj_with_texture(path: Path, mesh: trimesh.Trimesh, visual: TextureVisuals) -> bytes:
    """Text of an OBJ, whose texture (NAME.png) and material (NAME.mtl) are written first, so that
    it never lacks them.
    """
    picture, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    with atomic_write(picture) as file:
        file.write(_texture_png(visual))
    with atomic_write(material) as file:
        lines = ["newmtl surface", "Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", "illum 1"]
        file.write("\n".join([*lines, f"map_Kd {picture.name}", ""]).encode())
    lines = [f"mtllib {material.name}", "usemtl surface"]
    lines += ["v {:.7g} {:.7g} {:.7g}".format(*vertex) for vertex in mesh.vertices]
    lines += ["vt {:.6f} {:.6f}".format(*place) for place in visual.uv]
    lines += ["vn {:.4f} {:.4f} {:.4f}".format(*normal) for normal in mesh.vertex_normals]
    lines += ["f {0}/{0}/{0} {1}/{1}/{1} {2}/{2}/{2}".format(*face) for face in mesh.faces + 1]
    return ("\n".join(lines) + "\n").encode()


def _texture_png(visual: TextureVisuals) -> bytes:
    buffer = io.BytesIO()
    visual.material.image.save(buffer, format="PNG")
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------
# GLB


def glb_bytes(mesh: trimesh.Trimesh) -> bytes:
    """A mesh as binary glTF 2.0: matt, with smooth normals, and vertex colours or a texture.

    The world's axes are glTF's: y up, the front towards +z; a world unit is a metre.
    """
    binary = Binary()
    points = np.asarray(mesh.vertices, dtype=np.float32)
    attributes = {
        "POSITION": binary.accessor(
            points, FLOAT, min=points.min(axis=0).tolist(), max=points.max(axis=0).tolist()
        ),
        "NORMAL": binary.accessor(_unit_normals(mesh), FLOAT),
    }
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}
    more: dict[str, Any] = {}
    if isinstance(mesh.visual, TextureVisuals):
        uv = np.asarray(mesh.visual.uv, dtype=np.float32) * [1, -1] + [0, 1]  # here v runs downward
        attributes["TEXCOORD_0"] = binary.accessor(uv.astype(np.float32), FLOAT)
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        more = {
            "textures": [{"source": 0, "sampler": 0}],
            "samplers": [
                {
                    "magFilter": LINEAR,
                    "minFilter": LINEAR_MIPMAP_LINEAR,
                    "wrapS": CLAMP_TO_EDGE,
                    "wrapT": CLAMP_TO_EDGE,
                }
            ],
            "images": [
                {"bufferView": binary.view(_texture_png(mesh.visual)), "mimeType": "image/png"}
            ],
        }
    else:
        colors = np.asarray(cast(ColorVisuals, mesh.visual).vertex_colors)[:, :3]
        attributes["COLOR_0"] = binary.accessor(linear_colors(colors / 255), FLOAT)
    indices = binary.accessor(
        mesh.faces.astype(np.uint32).flatten(), UNSIGNED_INT, ELEMENT_ARRAY_BUFFER
    )
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    return glb_container(
        {"meshes": [{"primitives": [primitive]}], "materials": [material], **more}, binary
    )


def _unit_normals(mesh: trimesh.Trimesh) -> NDArray[np.float32]:
    """Vertex normals of length 1, also where triangles cancel out."""
    normals = np.asarray(mesh.vertex_normals, dtype=np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0.5, normals / np.maximum(length, 1e-12), (0.0, 1.0, 0.0)).astype(
        np.float32
    )
