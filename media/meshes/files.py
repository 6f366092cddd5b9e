"""Mesh files: PLY, OBJ (with its MTL and PNG where there is a texture) and GLB, each whole or not
at all.
"""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.visual import ColorVisuals, TextureVisuals

from dnnlib.console import UserError
from dnnlib.files import atomic_write

MESH_FORMATS = ("ply", "obj", "glb")
TEXTURE_FORMATS = ("obj", "glb")

# glTF 2.0, section 4.4
GLB_MAGIC, GLB_VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


def save_mesh(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None:
    """Write a mesh with vertex colours or a texture as ply, obj or glb, by the file's ending.

    PLY and OBJ hold vertex colours as they are (sRGB); GLB holds them linear, as its standard
    demands (glTF 2.0, section 3.7.2.1).

    Raises:
        UserError: if the file cannot be written, or a PLY should hold a texture.
    """
    path = Path(path)
    if path.suffix == ".glb":
        content = glb_bytes(mesh)
    elif not isinstance(mesh.visual, TextureVisuals):
        data: Any = mesh.export(file_type=path.suffix[1:])
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


class _Binary:
    """The binary chunk of a GLB and what describes it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, content: bytes, **more: Any) -> int:
        """Append bytes, aligned to 4; returns the index of their bufferView."""
        self.views.append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content), **more}
        )
        self.data += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def accessor(
        self, values: NDArray[Any], component: int, target: int = ARRAY_BUFFER, **more: Any
    ) -> int:
        """Append an array (K,) or (K, C); returns the index of its accessor."""
        width = 1 if values.ndim == 1 else values.shape[1]
        view = self.view(np.ascontiguousarray(values).tobytes(), target=target)
        entry = {
            "bufferView": view,
            "componentType": component,
            "count": len(values),
            "type": KINDS[width],
            **more,
        }
        self.accessors.append(entry)
        return len(self.accessors) - 1


def glb_bytes(mesh: trimesh.Trimesh) -> bytes:
    """A mesh as binary glTF 2.0: matt, with smooth normals, and vertex colours or a texture.

    The world's axes are glTF's: y up, the front towards +z; a world unit is a metre.
    """
    binary = _Binary()
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
        attributes["COLOR_0"] = binary.accessor(
            _linear_colors(cast(ColorVisuals, mesh.visual)), FLOAT
        )
    indices = binary.accessor(
        mesh.faces.astype(np.uint32).flatten(), UNSIGNED_INT, ELEMENT_ARRAY_BUFFER
    )
    return _glb_container(
        {
            "asset": {"version": "2.0", "generator": "open-eg3d"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [
                {"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}
            ],
            "materials": [material],
            **more,
            "accessors": binary.accessors,
            "bufferViews": binary.views,
            "buffers": [{"byteLength": len(binary.data)}],
        },
        bytes(binary.data),
    )


def _glb_container(description: dict[str, Any], data: bytes) -> bytes:
    """JSON and binary chunk with their headers (glTF 2.0, section 4.4)."""
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), JSON_CHUNK)
        + text
        + struct.pack("<II", len(data), BINARY_CHUNK)
        + data
    )
    return struct.pack("<III", GLB_MAGIC, GLB_VERSION, 12 + len(chunks)) + chunks


def _unit_normals(mesh: trimesh.Trimesh) -> NDArray[np.float32]:
    """Vertex normals of length 1, also where triangles cancel out."""
    normals = np.asarray(mesh.vertex_normals, dtype=np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0.5, normals / np.maximum(length, 1e-12), (0.0, 1.0, 0.0)).astype(
        np.float32
    )


def _linear_colors(visual: ColorVisuals) -> NDArray[np.float32]:
    """Linear colours (V, 3) of a mesh with sRGB ones, IEC 61966-2-1. As numbers: 8 linear bits
    would show steps in the dark.
    """
    colors = np.asarray(visual.vertex_colors)
    rgb = colors[:, :3] / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
