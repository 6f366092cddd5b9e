"""Every message of data_tools and training/data that names an option, a command or a file: doing
what it says helps. A message that no test does fails here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from data_tools.check.check import check_data
from data_tools.convert import ConvertConfig, convert
from data_tools.sources.base import ReadOptions
from data_tools.sources.detect import read_source
from dnnlib.console import UserError
from tests.advice import check_table, messages
from tests.data_tools import scenes
from tests.data_tools.scenes import OPENGL, Scene, orbit
from tests.tiny import ROOT, call
from training.data.dataset import ImageDataset

HERE = "tests/data_tools/test_advice.py"
SKIP_BAD = "tests/data_tools/test_skip_bad.py"
ALPHA = "tests/data_tools/test_alpha.py"
CHECK = "tests/data_tools/check/test_check.py"
CONVERT = "tests/data_tools/test_convert.py"
GUESS = "tests/data_tools/check/test_guess.py"
# A part of the message -> the test that does what it says.
DONE_IN = {
    "try --camera-axes, --poses world2cam, or --no-recentre": f"{HERE}::test_cameras_look_apart",
    "choose what shows through: --background": f"{HERE}::test_background",
    "save it as RGB, or train with --alpha composite": (
        f"{ALPHA}::test_alpha_is_asked_of_data_that_have_it"
    ),
    "convert --background white, or cut": f"{CHECK}::test_every_error_is_found",
    "--radius and --pivot move the scene": f"{HERE}::test_radius_without_recentring",
    "(--intrinsics pixels does so)": f"{CHECK}::test_mend_of_intrinsics_in_pixels",
    "convert --intrinsics pixels": f"{CHECK}::test_mend_of_intrinsics_in_pixels",
    "choose another --dest": f"{CONVERT}::test_existing_destination_is_kept_unless_told",
    "--dest {} {}; choose another": f"{CONVERT}::test_existing_destination_is_kept_unless_told",
    "pip install 'open-eg3d[": f"{HERE}::test_packages",
    "run `colmap image_undistorter` first": f"{HERE}::test_undistorted_pictures_are_read",
    "put the pictures into images/": f"{SKIP_BAD}::test_one_missing_picture_of_a_model_is_named",
    "is not of the form `f cx cy 0`": f"{HERE}::test_lens_file_of_srn",
    "name one of them as --source": f"{HERE}::test_one_of_several_tables",
    "docs/own-data.md shows how to get them": f"{HERE}::test_documents_are_there",
    "docs/training.md shows how to write it": f"{HERE}::test_documents_are_there",
    "(`dataset_tool.py check` finds them)": (
        "tests/training/data/test_shards.py::test_pictures_of_another_size_are_found_by_check"
    ),
    "set OPEN_EG3D_CACHE to a writable folder": (
        "tests/training/data/test_shards.py::"
        "test_a_cache_without_locks_is_refused_and_another_one_helps"
    ),
    "is no --format {}": f"{CONVERT}::test_settings_that_contradict_each_other",
    "does not look like --format {}": f"{CONVERT}::test_settings_that_contradict_each_other",
    "has no effect on a source of --format {}": f"{HERE}::test_option_without_effect",
    "convert makes them sRGB": f"{CHECK}::test_colours_that_training_does_not_heed",
    "convert turns them where their cameras need it": f"{HERE}::test_orientation",
    "convert --resolution {}": f"{HERE}::test_pictures_of_several_sizes",
    "python dataset_tool.py convert --source {} --dest {}": (
        "tests/train/test_train_photos.py::test_the_command_that_is_named_mends"
    ),
    "python dataset_tool.py faces --source {} --dest {}": (
        "tests/train/test_train_photos.py::test_portraits_without_cameras"
    ),
    "--cfg {} renders {}a box": f"{CHECK}::test_presets_are_compared",
    "--poses world2cam --camera-axes opengl": f"{GUESS}::test_",
    "--camera-axes opengl": f"{CHECK}::test_usual_mistakes_are_named_and_the_mend_mends",
    "python dataset_tool.py faces --setup": "tests/data_tools/faces/test_mediapipe.py::cache",
    "--min-size asks for": (
        "tests/data_tools/faces/test_convert.py::test_small_faces_are_named_and_can_be_left_out"
    ),
    "--min-size leaves such faces out": (
        "tests/data_tools/faces/test_convert.py::test_small_faces_are_named_and_can_be_left_out"
    ),
    "give --label, --poses or --optimise-pose for": "tests/test_invert.py::test_faces_are_found",
    "--face {}, but {} are found": "tests/test_invert.py::test_wrong_input_is_one_line",
    "give the --seed and --views-per-identity that": (
        "tests/data_tools/heads/test_traits.py::test_an_older_data_set_is_given_its_traits"
    ),
    "write them again with `dataset_tool.py traits`": (
        "tests/data_tools/heads/test_traits.py::test_an_older_data_set_is_given_its_traits"
    ),
    "try --workers 0": (
        "tests/training/data/test_dataset.py::test_memory_files_and_workers_give_the_same_batches"
    ),
    "--cfg ffhq, afhq or shapenet": f"{SKIP_BAD}::test_cameras_that_look_outward_and_the_advice",
    "convert --recentre` moves them": f"{SKIP_BAD}::test_an_object_far_away_and_the_advice",
    "convert --skip-bad`": (
        "tests/data_tools/test_oddities.py::test_skip_bad_leaves_out_what_does_not_go_together"
    ),
    "`dataset_tool.py convert` makes it one": f"{HERE}::test_pictures_of_another_format",
}


def test_every_advice_is_done_by_a_test():
    folders = (ROOT / "data_tools", ROOT / "training" / "data")
    said = messages(path for folder in folders for path in sorted(folder.rglob("*.py")))
    assert len(said) > 25
    # options that check prints: its tests follow them as a whole
    bare = re.compile(r"(convert |--[a-z-]+[= ])(pixels|world2cam|\{\}|white)")
    check_table({text: name for text, name in said.items() if not bare.fullmatch(text)}, DONE_IN)


def test_cameras_look_apart(tmp_path: Path):
    outward = scenes.write_transforms(Scene(orbit(6) @ OPENGL), tmp_path / "a")
    inverse = scenes.write_transforms(Scene(orbit(6)), tmp_path / "b")
    text = (inverse / "transforms.json").read_text()
    matrices = np.array([f.cam2world @ OPENGL for f in read_source(inverse).frames])
    for matrix in matrices:
        text = text.replace(str(matrix.tolist()), str(np.linalg.inv(matrix).tolist()))
    (inverse / "transforms.json").write_text(text)
    with pytest.raises(UserError, match="try --camera-axes"):
        convert(outward, tmp_path / "o.zip", ConvertConfig(workers=1, up="y"))
    for source, options in (
        (outward, ConvertConfig(read=ReadOptions(camera_axes="opencv"), workers=1)),
        (inverse, ConvertConfig(read=ReadOptions(poses="world2cam"), workers=1)),
        (outward, ConvertConfig(recentre=False, workers=1)),
    ):
        assert convert(source, tmp_path / "o.zip", options, overwrite=True).count == 6


@pytest.mark.parametrize("background", ["white", "black", "1,2,3", "random", "keep"])
def test_background(background: str, tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(2), size=(64, 64)), tmp_path / "in")
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(source / "pics" / "p1.png")
    arguments = ("convert", "--source", source, "--dest", tmp_path / "o.zip", "--workers", "1")
    run = call(dataset_tool.main, *arguments)
    assert "--background white, black, R,G,B or random" in run.err
    call(dataset_tool.main, *arguments, "--background", background).assert_done()


def test_radius_without_recentring(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(4)), tmp_path / "in")
    for options in (("--radius", "2"), ("--pivot", "0,0,0"), ("--no-recentre",)):
        arguments = ("convert", "--source", source, "--dest", tmp_path / "o.zip", "--overwrite")
        call(dataset_tool.main, *arguments, "--workers", "1", *options).assert_done()


def test_packages():
    """The extras that messages tell to install exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert any("pycolmap" in package for package in extras["colmap"])
    assert any("embreex" in package for package in extras["heads"])


def test_undistorted_pictures_are_read(tmp_path: Path):
    """A fisheye is refused; with the pinhole that undistorting writes it is read."""
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=False)
    cameras = source / "sparse" / "0" / "cameras.txt"
    good = cameras.read_text()
    cameras.write_text("1 SIMPLE_RADIAL_FISHEYE 96 80 150 48 40 0.1\n")
    with pytest.raises(UserError, match="no pinhole; run `colmap image_undistorter`"):
        read_source(source)
    cameras.write_text("1 SIMPLE_RADIAL 96 80 150 48 40 0.1\n")
    assert any("image_undistorter" in note for note in read_source(source).notes)
    cameras.write_text(good)
    assert read_source(source).notes == []


def test_lens_file_of_srn(tmp_path: Path):
    source = scenes.write_srn(Scene(orbit(2)), tmp_path / "in")
    lens = source / "object0" / "intrinsics.txt"
    lens.write_text("150\n")
    with pytest.raises(UserError, match="is not of the form"):
        read_source(source)
    lens.write_text("150 48 40 0\n80 96\n")
    assert len(read_source(source).frames) == 2


def test_one_of_several_tables(tmp_path: Path):
    scenes.write_pictures(Scene(orbit(1)), tmp_path, ["a.png"])
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file,yaw,pitch,radius,focal\na.png,0,0,1,1\n")
    with pytest.raises(UserError, match=r"name one of them as --source"):
        read_source(tmp_path)
    assert len(read_source(tmp_path / "b.csv").frames) == 1


def test_documents_are_there():
    own_data = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    assert "## Phone pictures through COLMAP" in own_data
    assert "dataset.json" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_option_without_effect(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(2)), tmp_path / "in")
    arguments = ("convert", "--source", source, "--dest", tmp_path / "o.zip", "--workers", "1")
    assert "leave it out" in call(dataset_tool.main, *arguments, "--focal", "2").err
    call(dataset_tool.main, *arguments).assert_done()


def square_set(folder: Path) -> Path:
    lens = np.array([[96.0, 0, 32], [0, 96, 32], [0, 0, 1]])
    return scenes.write_labels(Scene(orbit(8, yaw=40), intrinsics=lens, size=(64, 64)), folder)


def mended(source: Path, tmp_path: Path, config: ConvertConfig) -> list[str]:
    """Codes that check finds after converting."""
    convert(source, tmp_path / "mended.zip", config)
    report, _ = check_data(tmp_path / "mended.zip", workers=1)
    return [finding.code for finding in report.findings]


def test_orientation(tmp_path: Path):
    source = square_set(tmp_path / "in")
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = source / "pics" / "p1.png"
    Image.open(picture).save(picture, exif=exif)
    report, _ = check_data(source, workers=1)
    assert [finding.code for finding in report.findings] == ["exif"]
    assert mended(source, tmp_path, ConvertConfig(workers=1)) == []


def test_pictures_of_several_sizes(tmp_path: Path):
    source = square_set(tmp_path / "in")
    picture = source / "pics" / "p1.png"
    Image.open(picture).resize((32, 32)).save(picture)
    report, _ = check_data(source, workers=1)
    (finding,) = report.findings
    assert finding.options == "--resolution 64"
    assert mended(source, tmp_path, ConvertConfig(resolution=64, workers=1)) == []


def test_pictures_of_another_format(tmp_path: Path):
    source = square_set(tmp_path / "in")
    picture = source / "pics" / "p1.png"
    Image.open(picture).save(picture.with_suffix(".bmp"))
    picture.unlink()
    listing = source / "dataset.json"
    listing.write_text(listing.read_text().replace("p1.png", "p1.bmp"))
    with pytest.raises(UserError, match=r"`dataset_tool\.py convert` makes it one"):
        ImageDataset(source)
    assert mended(source, tmp_path, ConvertConfig(workers=1)) == []
