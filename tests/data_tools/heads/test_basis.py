"""The linear head model: subdivision weights and interpolated traits."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.heads.make_basis import loop_subdivision
from data_tools.heads.person import phenotype_weights, random_traits

trimesh = pytest.importorskip("trimesh")


def test_loop_subdivision_has_the_published_weights():
    # A hexagon fan: one regular inner vertex (valence 6), six border vertices.
    faces = np.array([[0, i + 1, (i + 1) % 6 + 1] for i in range(6)])
    refine, fine = loop_subdivision(faces, 7)
    dense = refine.toarray()
    assert dense.shape == (7 + 12, 7)
    assert fine.shape == (24, 3)
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(dense[0], [10 / 16] + [1 / 16] * 6, rtol=1e-6)
    np.testing.assert_allclose(dense[1], [0, 0.75, 0.125, 0, 0, 0, 0.125], rtol=1e-6)
    spoke = next(
        row for row in dense[7:] if np.isclose(row[0], 3 / 8) and np.isclose(row[1], 3 / 8)
    )
    np.testing.assert_allclose(spoke, [3 / 8, 3 / 8, 1 / 8, 0, 0, 0, 1 / 8], rtol=1e-6)
    rim = next(row for row in dense[7:] if row[0] == 0 and row[1] == 0.5 and row[2] == 0.5)
    assert rim.sum() == 1


def test_loop_subdivision_keeps_orientation_and_closure():
    ball = trimesh.creation.icosphere(subdivisions=1)
    refine, fine = loop_subdivision(np.asarray(ball.faces), len(ball.vertices))
    smooth = trimesh.Trimesh(refine @ ball.vertices, fine, process=False)
    assert smooth.is_watertight
    assert smooth.volume > 0


def test_phenotype_weights_interpolate_between_extremes():
    labels = [
        f"universal:{g}-{a}-{m}muscle-{w}weight"
        for g in ("male", "female")
        for a in ("young", "old")
        for m in ("min", "average", "max")
        for w in ("min", "average", "max")
    ]
    labels += [
        f"race:{r}-{g}-{a}"
        for r in ("african", "asian", "caucasian")
        for g in ("male", "female")
        for a in ("young", "old")
    ]
    traits = {
        "gender": 0.0,
        "age": 1.0,
        "muscle": 0.5,
        "weight": 1.0,
        "african": 0.0,
        "asian": 1.0,
        "caucasian": 0.0,
    }
    weights = dict(
        zip(
            [*labels, "local_change:x"],
            phenotype_weights([*labels, "local_change:x"], traits),
            strict=True,
        )
    )
    assert {name for name, weight in weights.items() if weight} == {
        "universal:male-old-averagemuscle-maxweight",
        "race:asian-male-old",
    }
    mixed = phenotype_weights(labels, random_traits(np.random.default_rng(3)))
    assert np.all(mixed >= 0)
    assert mixed[:36].sum() == pytest.approx(1)
    assert mixed[36:].sum() == pytest.approx(1)
