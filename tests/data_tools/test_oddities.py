"""Oddities of names, lists and members: training, check, convert, mirror and --camera files take or
refuse each of them alike, in the same words.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import dataset_tool
import train
from cli.photos import read_poses as read_named_poses
from dnnlib.console import UserError
from media.videos.paths import read_poses
from tests.tiny import call, encode, orbit_labels, pictures
from training.cameras import CameraSummary
from training.data.dataset import ImageDataset
from training.data.depth_maps import has_depth_map
from training.data.files import DataFiles

COUNT = 4
NAMES = [f"pics/é{index}.png" for index in range(COUNT)]
LABELS = [[round(value, 6) for value in label] for label in orbit_labels(COUNT).tolist()]
PICTURES = [encode(picture) for picture in pictures(COUNT, 32)]


def entries(**changed: Any) -> list[Any]:
    """The good labels, some of them with another name or other numbers."""
    return [
        [changed.get(f"name{index}", name), changed.get(f"label{index}", label)]
        for index, (name, label) in enumerate(zip(NAMES, LABELS, strict=True))
    ]


def text_of(labels: Any) -> str:
    return json.dumps({"labels": labels}, ensure_ascii=False)


def members(rename: Callable[[str], str] = str) -> dict[str, bytes]:
    return {rename(name): data for name, data in zip(NAMES, PICTURES, strict=True)}


@dataclass
class Oddity:
    """A data set: its pictures and other files, and dataset.json; the words with which it is
    refused; whether the list alone also is a camera file with the same verdict; for which
    containers.
    """

    listing: bytes = field(default_factory=lambda: text_of(entries()).encode())
    files: dict[str, bytes] = field(default_factory=members)
    words: tuple[str, ...] = ()
    camera: bool = False
    containers: tuple[str, ...] = ("folder", "zip")
    list_name: str = "dataset.json"


def named(name: str, **options: Any) -> Oddity:
    """Label 1 calls its picture so."""
    return Oddity(text_of(entries(name1=name)).encode(), **options)


def numbered(numbers: Any, *words: str) -> Oddity:
    """Label 1 has these numbers."""
    return Oddity(text_of(entries(label1=numbers)).encode(), words=words, camera=True)


def put(place: int, value: Any) -> list[Any]:
    return [*LABELS[1][:place], value, *LABELS[1][place + 1 :]]


def encoded(encoding: str, *words: str) -> Oddity:
    return Oddity(text_of(entries()).encode(encoding), words=words, camera=True)


DECOMPOSED = unicodedata.normalize("NFD", NAMES[1])
WHOLE = [[int(value) if value.is_integer() else value for value in label] for label in LABELS]
TWICE = text_of(dict(entries())).replace(NAMES[2], NAMES[1])
ODDITIES = {
    "as it should be": Oddity(camera=True),
    "dots in labels": Oddity(text_of([["./" + n, c] for n, c in entries()]).encode()),
    "dots inside": named("pics/../pics/./é1.png"),
    "dots in members": Oddity(files=members(lambda name: "./" + name), containers=("zip",)),
    "dots in all members": Oddity(
        files=members(lambda name: "./" + name), containers=("zip",), list_name="./dataset.json"
    ),
    "backslashes in labels": named("pics\\é1.png"),
    "backslashes in members": Oddity(files=members(lambda name: name.replace("/", "\\"))),
    "decomposed label": named(DECOMPOSED),
    "decomposed files": Oddity(files=members(lambda name: unicodedata.normalize("NFD", name))),
    "capitals in a label": named("pics/é1.PNG"),
    "capitals in files": Oddity(files=members(lambda name: name.replace(".png", ".Png"))),
    "capitals in the list's name": Oddity(list_name="dataset.JSON"),
    "byte order mark": encoded("utf-8-sig"),
    "UTF-16": encoded("utf-16"),
    "UTF-16 without a mark": encoded("utf-16-le"),
    "UTF-16 from the big end": Oddity(
        b"\xfe\xff" + text_of(entries()).encode("utf-16-be"), camera=True
    ),
    "a list in other capitals": Oddity(
        list_name="DATASET.json", words=("rename DATASET.json to dataset.json",)
    ),
    "UTF-32": encoded("utf-32"),
    "Latin-1": encoded("latin-1", "dataset.json is not UTF-8 text", "save it again as UTF-8"),
    "an object": Oddity(text_of(dict(entries())).encode(), camera=True),
    "a name twice in an object": Oddity(
        TWICE.encode(), words=("dataset.json is not JSON", "é1.png' twice"), camera=True
    ),
    "whole numbers": Oddity(
        text_of([list(pair) for pair in zip(NAMES, WHOLE, strict=True)]).encode(), camera=True
    ),
    "depth maps and masks": Oddity(
        files={**members(), "depth/" + NAMES[0]: PICTURES[0], "mask/" + NAMES[0]: PICTURES[0]}
    ),
    "labelled masks": Oddity(
        text_of([*entries(), ["mask/a.png", LABELS[0]]]).encode(),
        {**members(), "mask/a.png": PICTURES[0]},
    ),
    "hidden files": Oddity(
        files={**members(), ".x.png": b"", "__MACOSX/._a.png": b"", "pics/.b.png": b""}
    ),
    "other files": Oddity(files={**members(), "readme.txt": b"hello", "b.tif": b"hello"}),
    "a picture without a label": Oddity(
        files={**members(), "extra.png": PICTURES[0]},
        words=("extra.png", "no label in dataset.json", "add its 25 numbers, remove the picture"),
    ),
    "a label twice": Oddity(
        text_of([*entries(), entries()[1]]).encode(),
        words=("label 4 (pics/é1.png) labels its picture twice", "keep one of the two labels"),
    ),
    "a label twice by dots": Oddity(
        text_of([*entries(), ["./" + NAMES[1], LABELS[1]]]).encode(),
        words=("label 4 (pics/é1.png) labels its picture twice", "keep one of the two labels"),
    ),
    "a label twice by capitals": Oddity(
        text_of([*entries(), ["pics/é1.PNG", LABELS[1]]]).encode(),
        words=("label 4 (pics/é1.png) labels its picture twice", "keep one of the two labels"),
    ),
    "a label without a picture": Oddity(
        text_of([*entries(), ["pics/none.png", LABELS[1]]]).encode(),
        words=("label 4 (pics/none.png) is for a picture that is not there", "remove the label"),
    ),
    "a name in other capitals": named(
        "Pics/é1.png", words=("é1.png", "no label in dataset.json", "add its 25 numbers")
    ),
    "a name outside": Oddity(
        text_of([*entries(), ["../é1.png", LABELS[1]]]).encode(),
        words=("label 4 (../é1.png) lies outside of", "use names relative to the list"),
    ),
    "a member twice by dots": Oddity(
        files={**members(), "./" + NAMES[1]: PICTURES[0]},
        containers=("zip",),
        words=("holds pics/é1.png twice; pack it again",),
    ),
    "a member twice": Oddity(
        files={**members(), "pics\\é1.png": PICTURES[0]},
        words=("holds pics/é1.png twice; pack it again",),
    ),
    "a bare list": Oddity(
        json.dumps(entries()).encode(), words=("dataset.json is not JSON of the form",)
    ),
    "no labels": Oddity(b'{"labels": []}', words=("dataset.json has no camera labels",)),
    "26 numbers": Oddity(
        text_of(entries(label1=[*LABELS[1], 1.0])).encode(),
        words=("has 26 numbers instead of 25", "16 of the camera-to-world matrix"),
    ),
    "NaN": numbered(put(3, float("nan")), "has NaN or infinite numbers", "estimate its camera"),
    "a huge number": numbered(put(3, 10**400), "has NaN or infinite numbers"),
    "five rows of five": numbered(
        [LABELS[1][place : place + 5] for place in range(0, 25, 5)], "numbers"
    ),
    "other intrinsics": numbered(put(24, 2.0), "has intrinsics that are not of the form fx s cx"),
    "text": numbered(put(3, "0.5"), "holds '0.5', which is not a number; estimate"),
    "true": numbered(put(3, True), "holds 'True', which is not a number; estimate"),
    "null": numbered(put(3, None), "holds 'None', which is not a number; estimate"),
}


def write(oddity: Oddity, place: Path, container: str) -> Path:
    files = {oddity.list_name: oddity.listing, **oddity.files}
    if container == "zip":
        with zipfile.ZipFile(place / "data.zip", "w") as archive, warnings.catch_warnings():
            for name, data in files.items():
                archive.writestr(name, data)
        return place / "data.zip"
    for name, data in files.items():
        path = place / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place / "data"


CASES = [(name, container) for name, oddity in ODDITIES.items() for container in oddity.containers]


@pytest.mark.parametrize(("kind", "container"), CASES)
def test_all_readers_agree(kind: str, container: str, tmp_path: Path):
    oddity = ODDITIES[kind]
    data = write(oddity, tmp_path, container)
    tool, one = dataset_tool.main, ("--workers", "1")
    runs = {
        "train": call(
            train.main, "--data", data, "--outdir", tmp_path, "--device", "cpu", "--dry-run"
        ),
        "check": call(tool, "check", "--source", data, *one),
        "convert": call(tool, "convert", "--source", data, "--dest", tmp_path / "c.zip", *one),
        "mirror": call(tool, "mirror", "--source", data, "--dest", tmp_path / "m.zip", *one),
    }
    for name, run in runs.items():
        assert run.status == bool(oddity.words), (name, run.out, run.err)
        said = run.out + run.err
        flat = said.replace("; ", "\n").replace(str(data), "")
        for words in oddity.words:
            assert all(part in flat for part in words.split("; ")), (name, words, said)
    if oddity.camera:
        camera_file = tmp_path / "dataset.json"
        camera_file.write_bytes(oddity.listing)
        cameras = CameraSummary(radius=2.0, pivot=(0.0, 0.0, 0.0))
        for read in (lambda: read_poses(camera_file, cameras), lambda: named_poses(camera_file)):
            if oddity.words:
                with pytest.raises(UserError) as caught:
                    read()
                for words in oddity.words:
                    assert all(part in str(caught.value) for part in words.split("; "))
            else:
                assert torch.equal(read(), torch.tensor(LABELS))


def named_poses(path: Path) -> torch.Tensor:
    """What invert.py reads as --poses."""
    found = read_named_poses(path)
    return torch.stack([label for name in NAMES if (label := found[name]) is not None])


@pytest.mark.parametrize("traits", [[1], {"names": ["a"]}, {"names": 3, "pictures": {}}, None])
def test_traits_of_another_form_are_told_by_check_too(traits: Any, tmp_path: Path):
    listing = json.dumps({"labels": entries(), "traits": traits}).encode()
    data = write(Oddity(listing), tmp_path, "folder")
    check = call(dataset_tool.main, "check", "--source", data, "--workers", "1").assert_done()
    mirror = call(dataset_tool.main, "mirror", "--source", data, "--dest", tmp_path / "m.zip")
    mirror.assert_refused(1, '"traits" are not of the form')
    assert '"traits" are not of the form' in check.out
    assert_own_words(mirror.err)


@pytest.mark.parametrize(
    ("kind", "container"), [case for case in CASES if not ODDITIES[case[0]].words]
)
def test_what_is_taken_has_its_own_labels(kind: str, container: str, tmp_path: Path):
    """Each picture gets the label that names it."""
    dataset = ImageDataset(write(ODDITIES[kind], tmp_path, container))
    for index, name in enumerate(dataset.file_names):
        data = dataset.files.read(name)
        own = LABELS[PICTURES.index(data)]
        assert torch.equal(dataset.labels[index], torch.tensor(own))


def test_skip_bad_leaves_out_what_does_not_go_together(tmp_path: Path):
    labels = [*entries(label1=[1.0]), entries()[2], ["none.png", LABELS[0]], ["../x", LABELS[0]], 3]
    oddity = Oddity(text_of(labels).encode(), {**members(), "extra.png": PICTURES[0]})
    data = write(oddity, tmp_path, "zip")
    run = call(
        dataset_tool.main, "convert", "--source", data, "--dest", tmp_path / "o.zip", "--skip-bad"
    ).assert_done()
    assert len(ImageDataset(tmp_path / "o.zip")) == COUNT - 1
    left_out = [line for line in run.err.splitlines() if line.startswith("left out: ")]
    for words in ("1 numbers", "twice", "none.png", "outside", "label 7 is 3", "extra.png", "é1"):
        assert any(words in line for line in left_out), (words, left_out)


@pytest.mark.parametrize("rename", ["./depth/{}", "depth/{}", "depth\\{}"])
def test_depth_maps_are_found_by_the_same_rules(rename: str, tmp_path: Path):
    depth = {
        rename.format(unicodedata.normalize("NFD", name)): data for name, data in members().items()
    }
    data = write(Oddity(files={**members(), **depth}), tmp_path, "zip")
    files = DataFiles(data)
    assert all(has_depth_map(files, name) for name in ImageDataset(data).file_names)


# --------------------------------------------------------------------------------------------------
# Shapes of JSON

SHAPES: list[Any] = [
    None, True, 0, -1.5, "text", "", [], {}, [[]], [{}], [None], [[1, 2]], {"a": 1}, {"frames": {}},
    {"frames": [[]]}, {"frames": [None]}, {"frames": [{}]}, {"frames": [{"file_path": 3}]},
    {"frames": "x"}, {"labels": True}, {"labels": "x"}, {"labels": [None]}, {"labels": [[]]},
    {"labels": [["a.png"]]}, {"labels": {"a.png": None}}, {"labels": [["a.png", {}]]},
    {"labels": [["a.png", [[]]]]}, {"labels": [[[], []]]}, {"poses": None}, {"poses": [{}]},
    {"poses": {"yaw": 3}}, {"poses": [{"yaw": []}]}, {"poses": [{"yaw": None}]},
    {"frames": [{"file_path": "a.png", "transform_matrix": {}}]}, {"camera_angle_x": []},
    {"frames": [{"file_path": "pics/é0.png", "transform_matrix": [[1, 0, 0, 0], [0, 1, 0, 0],
                 [0, 0, 1, 0], [0, 0, 0, 1]]}], "camera_angle_x": [], "k1": {}},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: json.dumps(shape)[:40])
def test_any_shape_of_json_is_refused_in_words(shape: Any, tmp_path: Path):
    """No list of whatever shape leads to Python's own words, such as "object has no attribute"."""
    for name in ("dataset.json", "transforms.json"):
        folder = write(
            Oddity(list_name=name, listing=json.dumps(shape).encode()), tmp_path / name, "folder"
        )
        runs = [
            call(dataset_tool.main, "convert", "--source", folder, "--dest", tmp_path / "o.zip")
        ]
        if name == "dataset.json":
            runs.append(call(dataset_tool.main, "check", "--source", folder, "--workers", "1"))
            runs.append(
                call(dataset_tool.main, "mirror", "--source", folder, "--dest", tmp_path / "m")
            )
        for run in runs:
            assert run.status == 1
            assert_own_words(run.out + run.err)
    poses = tmp_path / "poses.json"
    poses.write_text(json.dumps(shape))
    try:
        read_poses(poses, CameraSummary(radius=2.0, pivot=(0.0, 0.0, 0.0)))
    except UserError as error:
        assert_own_words(str(error))


def assert_own_words(said: str) -> None:
    assert "Traceback" not in said
    assert "object" not in said.replace("an object", "").replace("JSON object", ""), said
