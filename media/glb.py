"""Binary glTF 2.0: arrays in a buffer, and the file around them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# glTF 2.0, section 4.4
GLB_MAGIC, GLB_VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class Binary:
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


def glb_container(
    description: dict[str, Any], binary: Binary, extensions: Sequence[str] = ()
) -> bytes:
    """A file with one node, which shows the first of `description`'s meshes (glTF 2.0, section
    4.4).
    """
    whole = {
        "asset": {"version": "2.0", "generator": "open-eg3d"},
        **({"extensionsUsed": list(extensions)} if extensions else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        **description,
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.data)}],
    }
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), JSON_CHUNK)
        + text
        + struct.pack("<II", len(binary.data), BINARY_CHUNK)
        + bytes(binary.data)
    )
    return struct.pack("<III", GLB_MAGIC, GLB_VERSION, 12 + len(chunks)) + chunks


def linear_colors(colors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Linear colours (V, 3) of sRGB ones in [0, 1], IEC 61966-2-1. As numbers: 8 linear bits would
    show steps in the dark.
    """
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4).astype(
        np.float32
    )
