"""True traits of the built-in heads: in the data set, given to older ones, kept by the tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy import sparse

import dataset_tool
from data_tools.heads.basis import HeadBasis, load_basis
from data_tools.heads.dataset import HeadsConfig, generate_heads, head_traits
from data_tools.heads.make_basis import loop_subdivision
from data_tools.heads.paint import HAIR_TONES, IRIS_TONES
from data_tools.heads.person import build_head, coarse_points, random_person
from data_tools.heads.traits import LANDMARKS, person_traits
from dnnlib.console import UserError
from open_eg3d.measuring import known_traits, real_images
from tests.data_tools.heads.test_dataset import contents
from tests.tiny import call
from training.data.dataset import ImageDataset
from training.data.files import DataFiles
from training.data.traits import read_traits

pytest.importorskip("embreex")
CONFIG = HeadsConfig(count=5, resolution=32, workers=1, seed=3)
EYES = {
    "eyes_dark": ("brown", "dark"),
    "eyes_green": ("hazel", "green"),
    "eyes_blue": ("blue", "grey"),
}


def rows_of(path: Path) -> dict[str, list[float]]:
    traits = read_traits(DataFiles(path))
    assert traits is not None
    return traits.rows


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return generate_heads(tmp_path / "heads.zip", CONFIG)


def without_traits(archive: Path, folder: Path) -> Path:
    """The data set as it was made before it had traits."""
    for name, data in contents(archive).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_every_picture_has_the_traits_of_its_head(archive: Path):
    traits = read_traits(DataFiles(archive))
    assert traits is not None
    assert list(traits.rows) == ImageDataset(archive).file_names
    for index, row in enumerate(traits.rows.values()):
        assert dict(zip(traits.names, row, strict=True)) == head_traits(3, index // 2)
    first, second, third = list(traits.rows.values())[:3]
    assert first == second != third
    known, names = known_traits(ImageDataset(archive, mirror=True))
    assert known is not None
    assert known.shape == (10, len(names))
    assert known[7].tolist() == known[2].tolist() == third


def toy_basis() -> HeadBasis:
    """An egg with eyeballs and one shape direction in either sense."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    skin = ball.vertices * (0.075, 0.13, 0.1) + (0, 0.72, 0.06)
    eye = trimesh.creation.uv_sphere(count=[10, 9]).vertices[:72] * 0.0138
    template = np.concatenate(
        [skin, *(eye + np.array([x, 0.7284, 0.15]) for x in (0.0308, -0.0308))]
    )
    wider = np.concatenate([skin * (0.2, 0, 0), np.zeros((144, 3))])
    refine, faces = loop_subdivision(np.asarray(ball.faces), len(skin))
    return HeadBasis(
        template=template.astype(np.float32),
        shapes=np.stack([wider, -wider]).astype(np.float32),
        labels=np.array(["local_change:head-wide-incr", "local_change:head-wide-decr"]),
        refine=sparse.csr_matrix(refine),
        faces=faces,
        ear=np.zeros(refine.shape[0], dtype=np.float32),
    )


def test_classes_are_those_of_the_look_and_measures_of_the_mesh():
    basis = toy_basis()
    people = [random_person(basis, np.random.default_rng(seed)) for seed in range(200)]
    rows = [person_traits(basis, person) for person in people]
    for person, row in zip(people, rows, strict=True):
        hair = {name: row[f"hair_{name}"] for name in HAIR_TONES}
        assert row["bald"] == (person.look.hair_thickness == 0)
        assert sum(hair.values()) + row["bald"] == 1
        if not row["bald"]:
            tone = max(hair, key=lambda name: hair[name])
            assert np.abs(person.look.hair / HAIR_TONES[tone] - 1).max() < 0.5
        assert sum(row[name] for name in EYES) == 1
        (eyes,) = (tones for name, tones in EYES.items() if row[name])
        assert min(np.abs(person.look.iris / IRIS_TONES[tone] - 1).max() for tone in eyes) < 0.5
        assert (row["beard"] > 0) == (build_head(basis, person).look.beard_depth > 0)
    assert 0 < sum(row["bald"] for row in rows) < 60
    light = np.corrcoef(
        [row["skin_lightness"] for row in rows], [person.look.skin.mean() for person in people]
    )
    assert light[0, 1] > 0.98
    # the toy's only change of shape widens it along x: at the landmarks' nearest vertices
    widths = [np.ptp(coarse_points(basis, person)[: basis.skin_count, 0]) for person in people]
    assert np.corrcoef(widths, [row["cheek_width"] for row in rows])[0, 1] > 0.999
    assert len({row["nose_length"] for row in rows}) == 1


def test_landmarks_are_vertices_of_the_real_head():
    basis = load_basis()
    mean = basis.template[: basis.skin_count]
    for name, place in LANDMARKS.items():
        assert np.linalg.norm(mean - place, axis=1).min() < 1e-3, name


def test_an_older_data_set_is_given_its_traits(archive: Path, tmp_path: Path):
    old = without_traits(archive, tmp_path / "old")
    assert read_traits(DataFiles(old)) is None
    assert known_traits(ImageDataset(old)) == (None, ())
    options = ("--source", old, "--dest", tmp_path / "new.zip")
    ended = call(dataset_tool.main, "traits", *options, "--seed", "3")
    assert ended.status == 0, ended.err
    assert contents(tmp_path / "new.zip") == contents(archive)
    for wrong in (("--seed", "4"), ("--seed", "3", "--views-per-identity", "1")):
        options = ("--source", old, "--dest", tmp_path / "wrong.zip")
        ended = call(dataset_tool.main, "traits", *options, *wrong)
        ended.assert_refused(1, "--views-per-identity")
        assert not (tmp_path / "wrong.zip").exists()


def test_mirror_rebalance_and_convert_keep_traits(archive: Path, tmp_path: Path):
    rows = list(rows_of(archive).values())
    for command, order in (("mirror", [*range(5), *range(5)]), ("convert", range(5))):
        dest = tmp_path / f"{command}.zip"
        call(dataset_tool.main, command, "--source", archive, "--dest", dest, "--workers", "1")
        assert list(rows_of(dest).values()) == [rows[index] for index in order]
        assert list(rows_of(dest)) == ImageDataset(dest).file_names
    call(dataset_tool.main, "rebalance", "--source", archive, "--dest", tmp_path / "r.zip")
    assert list(rows_of(tmp_path / "r.zip").values())[:5] == rows
    checked = call(dataset_tool.main, "check", "--source", archive, "--workers", "1", "--json")
    assert json.loads(checked.out)["errors"] == []
    # what is left out has no traits any more
    folder = without_traits(archive, tmp_path / "whole")
    text = contents(archive)["dataset.json"].decode()
    (folder / "dataset.json").write_text(text)
    Image.new("RGB", (3, 5)).save(folder / "00000" / "img00000001.png")
    (folder / "00000" / "img00000001.png").write_bytes(b"no picture")
    dest = tmp_path / "some.zip"
    options = ("--source", folder, "--dest", dest, "--skip-bad", "--workers", "1")
    call(dataset_tool.main, "convert", *options)
    assert list(rows_of(dest).values()) == [rows[0], *rows[2:]]


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ('{"names": ["a"], "pictures": {"p.png": [1, 2]}}', "has not 1 numbers"),
        ('{"names": ["a"], "pictures": {"p.png": [NaN]}}', "not a finite number"),
        ('{"names": ["a"], "pictures": {"p.png": [true]}}', "not a finite number"),
        ('{"names": ["a"], "pictures": {"p.png": [1' + "0" * 400 + "]}}", "of the form"),
        ('{"names": ["a", "a"], "pictures": {"p.png": [1, 2]}}', "stands twice"),
        ('{"names": ["a"], "pictures": ["p.png"]}', "of the form"),
        ('{"pictures": {}}', "of the form"),
        ("7", "of the form"),
    ],
)
def test_damaged_traits_are_one_line(traits: str, words: str, tmp_path: Path):
    (tmp_path / "p.png").touch()
    (tmp_path / "dataset.json").write_text(f'{{"labels": [], "traits": {traits}}}')
    with pytest.raises(UserError, match=words) as caught:
        read_traits(DataFiles(tmp_path))
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_traits_too(tmp_path: Path):
    """As other programs write them: JSON has but one kind of number."""
    (tmp_path / "p.png").touch()
    traits = '{"names": ["bald", "age"], "pictures": {"p.png": [0, 33.5]}}'
    (tmp_path / "dataset.json").write_text(f'{{"labels": [], "traits": {traits}}}')
    assert rows_of(tmp_path) == {"p.png": [0.0, 33.5]}


def test_damaged_traits_are_told_where_traits_are_asked_for(archive: Path, tmp_path: Path):
    data = without_traits(archive, tmp_path / "damaged")
    labels = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(labels | {"traits": 7}))
    reals = real_images(ImageDataset(data))
    assert reals.count == 5
    with pytest.raises(UserError, match="of the form"):
        reals.traits()
