"""invert.py: files and what is in them, ways to a camera, data sets that go on, wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gen_samples
import gen_videos
import invert
from cli.photos import GUESSED_PRIOR
from data_tools.faces.photos import face_view
from data_tools.faces.pose import FACE_FOCAL, FacePose, face_crop, face_label
from metrics.perceptual import load_perceptual
from open_eg3d import export, inverting, label_pose, load_generator, map_latents, seed_latents
from tests.data_tools.faces.test_convert import BLUE, PLUGIN, RED, picture
from tests.tiny import PATIENCE, call, encode, finish, orbit_labels, pictures, start, write_dataset
from tests.training.checkpoints.test_identities import write
from training.cameras import CameraSummary, cameras_of

LABEL = ",".join(str(value) for value in orbit_labels(1)[0].tolist())
QUICK = ("--steps", "1", "1")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("invert") / "ckpt.pkl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an estimator that takes discs for faces, and no feature network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inverting, "load_perceptual", lambda *_: (None, "none"))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    for index, pixels in enumerate(pictures(3, 48)):
        Image.fromarray(pixels).save(tmp_path / f"p{index}.png")
    return tmp_path


def refused(*options: str | Path) -> str:
    """The one error of a call, whose only other line says how pictures are compared."""
    ended = call(invert.main, *options)
    assert ended.status == 1
    assert [line.split()[0] for line in ended.lines] == ["Compared", "error:"], ended.err
    return ended.lines[-1]


def report(name: str, folder: str = "out") -> dict:
    return json.loads(Path(folder, f"{name}.json").read_text())


def test_files_of_a_photo(network: Path) -> None:
    ended = call(invert.main, "--network", network, "p0.png", "--label", LABEL, *QUICK)
    assert ended.assert_done().out.startswith("p0: ")
    assert "Compared by differences of neighbouring pixels" in ended.err
    assert {path.name for path in Path("out").iterdir()} == {"p0.pkl", "p0.png", "p0.json"}
    generator, found = load_generator("out/p0.pkl"), report("p0")
    assert list(generator.latents) == ["p0"]  # tuned: the others are not as they were
    entry = generator.latents["p0"]
    assert entry["source"] == "p0.png"
    torch.testing.assert_close(entry["camera"], orbit_labels(1)[0])
    assert found["method"] == "pti"
    assert found["settings"]["latents"]["steps"] == 1
    np.testing.assert_allclose(found["labels"][0], orbit_labels(1)[0], atol=1e-6)
    with Image.open("out/p0.png") as file:
        sheet = np.asarray(file).astype(int)
    panels = sheet.reshape(32, 10, 32, 3).swapaxes(0, 1)
    out = generator.synthesis(entry["ws"][None], entry["camera"][None])
    error = torch.from_numpy(panels[0] - panels[1]).double().square().mean() / 255**2
    assert -10 * float(torch.log10(error)) == pytest.approx(found["losses"]["psnr"], abs=0.1)
    shown = ((out.image[0].clamp(-1, 1) + 1) * 127.5).movedim(0, -1)
    assert np.abs(panels[1] - shown.numpy()).max() <= 1
    np.testing.assert_array_equal(panels[2], np.abs(panels[0] - panels[1]))


def test_the_result_goes_into_the_other_commands(network: Path) -> None:
    options = ("--network", network, "p0.png", "--label", LABEL, *QUICK)
    call(invert.main, *options, "--method", "w+").assert_done()
    assert list(load_generator("out/p0.pkl").latents) == ["ada", "b-2", "p0"]
    shown = ("--network", "out/p0.pkl", "--latents", "p0", "--outdir", "shown")
    call(gen_samples.main, *shown).assert_done()
    call(gen_videos.main, *shown, "--frames", "2").assert_done()
    assert {path.name for path in Path("shown").iterdir()} == {"p0.png", "p0.mp4"}
    again = ("--network", "out/p0.pkl", "p1.png", "--label", LABEL, *QUICK, "--outdir", "two")
    call(invert.main, *again).assert_done()


def test_ways_to_a_camera(network: Path) -> None:
    base = ("--network", network, "--method", "w", *QUICK)
    labels = orbit_labels(2)
    Path("label.json").write_text(json.dumps(labels[1].tolist()))
    call(invert.main, *base, "p0.png", "--label", "label.json", "--outdir", "a").assert_done()
    np.testing.assert_allclose(report("p0", "a")["labels"][0], labels[1], atol=1e-6)
    entries = [[f"x/p{index}.png", c.tolist()] for index, c in enumerate(labels)]
    Path("poses.json").write_text(json.dumps({"labels": entries}))
    both = ("p0.png", "p1.png", "--poses", "poses.json")
    call(invert.main, *base, *both, "--outdir", "b").assert_done()
    for index in range(2):
        found = report(f"p{index}", "b")["labels"][0]
        np.testing.assert_allclose(found, labels[index], atol=1e-6)
    call(invert.main, *base, *both, "--outdir", "c", "--optimise-pose").assert_done()
    assert np.abs(report("p0", "c")["labels"][0] - labels[0].numpy()).max() > 1e-5
    together = (*base, *both, "--outdir", "d", "--same-person", "eve")
    call(invert.main, *together).assert_done()
    assert {path.name for path in Path("d").iterdir()} == {"eve.pkl", "eve.png", "eve.json"}
    assert len(report("eve", "d")["poses"]) == len(report("eve", "d")["sources"]) == 2
    unknown = (*base[:3], "w", "--seconds", "0", "p0.png", "--optimise-pose", "--outdir", "e")
    call(invert.main, *unknown).assert_done()
    assert len(report("p0", "e")["poses"][0]["starts"]) == 5


def test_faces_are_found(network: Path) -> None:
    two = picture((BLUE, 120, 150, 40), (RED, 280, 150, 50))
    two.save("two.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: stored lying
    two.transpose(Image.Transpose.ROTATE_90).save("lying.png", exif=exif)
    base = ("--network", network, *QUICK, "--method", "w", "--estimator", "plugin:discs")
    ended = call(invert.main, *base, "two.png").assert_done()
    assert "2 faces, the largest first: two-1, two-2" in ended.out
    assert {path.stem for path in Path("out").iterdir()} == {"two-1", "two-2"}
    cameras = cameras_of(load_generator(network))
    start = label_pose(torch.tensor(report("two-1")["labels"][0]), cameras.center)
    assert float(start.yaw_degrees) == pytest.approx(np.degrees(0.3), abs=2.5)
    ended = call(invert.main, *base, "lying.png", "--face", "2", "--outdir", "b").assert_done()
    assert {path.stem for path in Path("b").iterdir()} == {"lying"}
    with Image.open("out/two-2.png") as first, Image.open("b/lying.png") as second:
        given = (np.asarray(one)[:, :32].astype(int) for one in (first, second))
        assert np.abs(next(given) - next(given)).mean() < 3


def test_a_face_is_framed_as_the_model_was_trained() -> None:
    pose = FacePose.from_angles(0.3, -0.1, 0.2, (100.0, 80.0), 40.0)
    published = CameraSummary(2.7, (0.0, 0.0, 0.2))
    label, crop, is_exact = face_view(pose, published)
    assert is_exact
    np.testing.assert_allclose(label, face_label(pose), atol=1e-6)
    assert crop.side == face_crop(pose).side
    wide = CameraSummary(2.7, (0.0, 0.0, 0.0), intrinsics=(2.0, 0, 0.5, 0, 2.0, 0.5, 0, 0, 1))
    label, crop, is_exact = face_view(pose, wide)
    assert not is_exact
    assert crop.side == pytest.approx(face_crop(pose).side * FACE_FOCAL / 2.0)
    assert float(label_pose(label).yaw_degrees) == pytest.approx(np.degrees(0.3), abs=1.5)


def test_what_is_known_of_some_cameras_is_kept(network: Path) -> None:
    """Two photos of one person, the first with a label: the other's camera alone is looked for."""
    labels = orbit_labels(1)
    Path("poses.json").write_text(json.dumps({"labels": [["p0.png", labels[0].tolist()]]}))
    photos = ("--network", network, "p0.png", "p1.png", "--poses", "poses.json")
    options = ("--optimise-pose", "--same-person", "eve", "--method", "w", "--seconds", "0")
    call(invert.main, *photos, *options).assert_done()
    found = report("eve")
    assert ["starts" in pose for pose in found["poses"]] == [False, True]
    assert found["origins"] == ["given", "unknown"]
    np.testing.assert_allclose(found["labels"][0], labels[0], atol=0.1)  # a step away


def test_poses_are_found_by_whole_names_first(network: Path) -> None:
    labels = orbit_labels(3)
    entries = [["a/x.png", labels[0].tolist()], ["b/x.png", labels[1].tolist()]]
    Path("poses.json").write_text(json.dumps({"labels": entries}))
    for folder in ("a", "b"):
        Path("photos", folder).mkdir(parents=True)
        shutil.copy("p0.png", f"photos/{folder}/x.png")
    base = ("--network", network, "--poses", "poses.json", "--method", "w", *QUICK)
    call(invert.main, *base, "--data", "photos").assert_done()
    for index, name in enumerate(("a_x", "b_x")):
        np.testing.assert_allclose(report(name)["labels"][0], labels[index], atol=1e-6)
    shutil.copy("p0.png", "x.png")
    assert "several files named x.png" in refused(*base, "x.png")
    Path("poses.json").write_text(json.dumps({"labels": [entries[0], entries[0]]}))
    call(invert.main, *base, "x.png").assert_refused(1, "a/x.png twice")


def test_names_can_be_opened(network: Path) -> None:
    """What is written under long and like names, every command opens."""
    base = ("--network", network, "--label", LABEL, "--method", "w", *QUICK)
    long = "n" * 90
    photos = []
    for folder in ("a", "b"):
        Path(folder).mkdir()
        photos.append(Path(shutil.copy("p0.png", f"{folder}/{long}.png")))
    photos.append(Path(shutil.copy("p0.png", "a/Ada Lovelace.png")))
    call(invert.main, *base, *photos).assert_done()
    names = {path.stem for path in Path("out").glob("*.json")}
    assert names == {"n" * 64, "n" * 62 + "-2", "Ada_Lovelace"}
    for name in names:
        assert name in load_generator(f"out/{name}.pkl").latents
    nested = [f"x/{long}/{name}.png" for name in ("one", "two")]
    for path in nested:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("p0.png", path)
    call(invert.main, *base, "--data", "x", "--outdir", "nested").assert_done()
    written = list(Path("nested").glob("*.pkl"))
    assert len(written) == 2
    for file in written:
        assert file.stem in load_generator(file).latents


def test_faces_have_names_of_their_own(network: Path) -> None:
    picture((BLUE, 120, 150, 40), (RED, 280, 150, 50)).save("two.png")
    shutil.copy("two.png", "m" * 64 + ".png")
    picture((RED, 200, 150, 50)).save("two-1.png")
    options = ("two.png", "two-1.png", "m" * 64 + ".png", "--estimator", "plugin:discs")
    call(invert.main, "--network", network, *QUICK, "--method", "w", *options).assert_done()
    names = {path.stem for path in Path("out").glob("*.json")}
    assert names == {"two-1", "two-1-2", "two-2", "m" * 62 + "-1", "m" * 62 + "-2"}
    for name in names:
        assert name in load_generator(f"out/{name}.pkl").latents


@pytest.mark.parametrize("name", ["Ada Lovelace", "../x", "", "a" * 65, ".x"])
def test_other_names_are_refused_before_the_network_is_opened(name: str) -> None:
    options = ("p0.png", "--label", LABEL, "--same-person", name)
    ended = call(invert.main, "--network", "none.pkl", *options)
    ended.assert_refused(1, "--same-person", "letters, digits")


def test_the_network_itself_is_not_replaced(network: Path, folder: Path) -> None:
    own = Path(shutil.copy(network, folder / "p0.pkl"))
    before = own.read_bytes()
    base = ("--network", own, "--outdir", folder, "--method", "w", *QUICK)
    assert "the network itself" in refused(*base, "p0.png", "--label", LABEL)
    Path("photos").mkdir()
    for name in ("a.png", "p0.png"):
        shutil.copy("p1.png", f"photos/{name}")
    assert "the network itself" in refused(*base, "--data", "photos", "--label", LABEL)
    assert not Path("a.json").exists()
    Path("scores.csv").write_text("seed,hair\n" + "\n".join(f"{i},{i}" for i in range(20)))
    link = folder / "link.pkl"
    os.symlink(own, link)
    to = ("--scores", "scores.csv", "--dest", link)
    call(invert.main, "--network", own, *to).assert_refused(1, "the network itself")
    assert own.read_bytes() == before


def test_masks_and_alpha(network: Path) -> None:
    base = ("--network", network, *QUICK, "--method", "w", "--label", LABEL)
    mask = np.zeros((48, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save("mask.png")
    with Image.open("p0.png") as file:
        photo = file.convert("RGB")
    photo.putalpha(Image.fromarray(mask))
    photo.save("alpha.png")
    call(invert.main, *base, "p0.png", "--mask", "mask.png").assert_done()
    call(invert.main, *base, "alpha.png").assert_done()
    call(invert.main, *base, "p0.png", "--outdir", "whole").assert_done()
    ws = [
        load_generator(path).latents[name]["ws"]
        for path, name in (("out/p0.pkl", "p0"), ("out/alpha.pkl", "alpha"), ("whole/p0.pkl", "p0"))
    ]
    torch.testing.assert_close(ws[0], ws[1], atol=1e-3, rtol=0)
    assert not torch.equal(ws[0], ws[2])
    Image.fromarray(mask[:20]).save("low.png")
    for options, words in (
        (("--mask", "low.png"), "differ in size"),
        (("--mask", "mask.png", "--mask", "mask.png"), "2 masks"),
    ):
        assert words in refused(*base, "p0.png", *options)


# --------------------------------------------------------------------------------------------------
# Data sets


def test_a_data_set_goes_on_where_it_stopped(
    network: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first picture; the second call inverts what is missing, and nothing else."""
    monkeypatch.setattr(inverting, "load_perceptual", load_perceptual)  # as in the process
    data = write_dataset(folder / "data.zip", count=3)
    options = ("--network", network, "--data", data, "--method", "w", "--steps", "60", "1")
    process = start("invert.py", *options, cwd=folder)
    reports = folder / "out"
    deadline = time.monotonic() + PATIENCE
    while not list(reports.glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    finish(process)
    before = {path: path.stat().st_mtime_ns for path in reports.glob("*.json")}
    assert 1 <= len(before) < 3
    ended = call(invert.main, *options).assert_done()
    lines = ended.out.splitlines()
    assert len(lines) == 3
    assert sum("there already" in line for line in lines) == len(before)
    assert all(path.stat().st_mtime_ns == value for path, value in before.items())
    names = {f"00000_img{index:08d}" for index in range(3)}
    assert {path.stem for path in reports.glob("*.json")} == names
    assert {path.stem for path in reports.glob("*.pkl")} == names
    np.testing.assert_allclose(
        report("00000_img00000001")["labels"][0], orbit_labels(3)[1], atol=1e-6
    )
    assert "other settings" in refused(*options, "--method", "w+")
    assert "other settings" in refused(*options, "--optimise-pose")
    call(invert.main, *options, "--label", LABEL).assert_refused(2, "has labels of its own")


def test_a_folder_of_photos(network: Path) -> None:
    Path("photos").mkdir()
    picture((RED, 200, 150, 50)).save("photos/red.png")
    picture().save("photos/nobody.png")
    Path("photos/broken.jpg").write_bytes(b"no picture")
    options = ("--network", network, "--data", "photos", "--method", "w", *QUICK)
    ended = call(invert.main, *options, "--estimator", "plugin:discs").assert_done()
    assert [line.split(":")[0] for line in ended.out.splitlines()] == ["[3/3] red"]
    assert "[2/3] nobody: photos: nobody.png: no face found" in ended.err
    assert "[1/3] broken: photos: broken.jpg cannot be read" in ended.err
    assert "2 of 3 pictures were left out" in ended.err
    Path("photos/red.png").unlink()
    shutil.rmtree("out")
    ended = call(invert.main, *options, "--estimator", "plugin:discs")
    assert ended.status == 1
    assert "none of 2 pictures" in ended.lines[-1]


def test_what_was_made_otherwise_is_told(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of found faces: settings that were really used, estimator, features, cameras."""
    Path("photos").mkdir()
    picture((RED, 200, 150, 50)).save("photos/red.png")
    found = ("--network", network, "--data", "photos", "--method", "w", *QUICK)
    options = (*found, "--estimator", "plugin:discs")
    call(invert.main, *options).assert_done()
    made = report("red")
    assert made["origins"] == ["guessed"]  # the tiny network's cameras are not those of faces
    assert made["settings"]["latents"]["pose_prior"] == GUESSED_PRIOR
    assert made["estimator"] == "plugin:discs"
    assert "there already" in call(invert.main, *options).assert_done().out
    for other in (
        (*found, "--estimator", "plugin:others"),
        (*found, "--label", LABEL),
        (*found, "--optimise-pose"),
        (*options, "--face", "1"),
        (*options, "--optimise-focal"),
    ):
        assert "other settings" in refused(*other)
    with monkeypatch.context() as patch:
        patch.setattr("cli.photos.GUESSED_PRIOR", 2.0)
        assert "other settings" in refused(*options)
    with monkeypatch.context() as patch:
        distance = (inverting.gradient_distance, "other features")
        patch.setattr(inverting, "load_perceptual", lambda *_: distance)
        assert "other settings" in refused(*options)
    labelled = (*found, "--label", LABEL, "--outdir", "labelled")
    call(invert.main, *labelled).assert_done()
    assert report("red", "labelled")["settings"]["latents"]["pose_prior"] > GUESSED_PRIOR
    again = call(invert.main, *labelled, "--estimator", "plugin:others")  # is not asked
    assert "there already" in again.assert_done().out
    second = ",".join(str(value) for value in orbit_labels(2)[1].tolist())
    assert "other settings" in refused(*labelled, "--label", second)


def test_moved_photos_and_networks_are_known_again(network: Path) -> None:
    """By what they hold: other photos or weights under the same names are others."""
    Path("photos").mkdir()
    shutil.copy("p0.png", "photos/x.png")
    shutil.copy(network, "net.pkl")
    options = ("--label", LABEL, "--method", "w", *QUICK)
    call(invert.main, "--network", "net.pkl", "--data", "photos", *options).assert_done()
    Path("photos").rename("moved")
    Path("net.pkl").rename("renamed.pkl")
    again = call(invert.main, "--network", "renamed.pkl", "--data", "moved", *options)
    assert "there already" in again.assert_done().out
    call(invert.main, "--network", network, "--data", "moved", *options).assert_done()
    shutil.copy("p1.png", "moved/x.png")
    assert "of another picture or network" in refused(
        "--network", "renamed.pkl", "--data", "moved", *options
    )
    shutil.copy("p0.png", "moved/x.png")
    generator = load_generator(network)
    with torch.no_grad():
        next(generator.parameters()).mul_(1.5)
    export(generator, "renamed.pkl")
    assert "of another picture or network" in refused(
        "--network", "renamed.pkl", "--data", "moved", *options
    )


def test_an_empty_mask_is_left_out(network: Path) -> None:
    Path("photos").mkdir()
    Image.new("RGBA", (48, 48), (200, 0, 0, 0)).save("photos/empty.png")
    shutil.copy("p0.png", "photos/whole.png")
    options = ("--network", network, "--data", "photos", "--label", LABEL, "--method", "w", *QUICK)
    ended = call(invert.main, *options).assert_done()
    assert "[1/2] empty: photos: empty.png: the mask leaves nothing of the picture" in ended.err
    assert "1 of 2 pictures were left out" in ended.err
    assert Path("out/whole.json").exists()


# --------------------------------------------------------------------------------------------------
# Directions, and wrong input


def test_directions_from_scores(network: Path) -> None:
    generator = load_generator(network)
    w = map_latents(generator, seed_latents(generator, range(60)))[:, 0]
    lines = ["seed,hair,age", *(f"{i},{one[0]},{one[1]}" for i, one in enumerate(w.tolist()))]
    Path("scores.csv").write_text("\n".join(lines))
    base = ("--network", network, "--scores", "scores.csv", "--dest", "edited.pkl")
    assert "directions hair, age" in call(invert.main, *base).assert_done().out
    edited = load_generator("edited.pkl")
    assert set(edited.directions) == {"hair", "age"}
    assert set(edited.latents) == {"ada", "b-2"}
    moved = edited.directions["hair"][0]
    assert moved[0] == pytest.approx(float(w[:, 0].std()), rel=0.2)
    excel = "\ufeffseed, hair \r\n" + "\r\n".join(f"{i}, {i % 7}" for i in range(20))
    Path("scores.csv").write_text(excel, encoding="utf-8", newline="")
    call(invert.main, *base).assert_done()
    assert set(load_generator("edited.pkl").directions) == {"hair"}
    for text, words in (
        ("seed,hair length\n1,2", "'hair length'"),
        ("seed,../x\n1,2", "'../x'"),
        ("seed,hair,\n1,2,", "''"),
        ("seed,hair,hair\n1,2,3", "no table of scores"),
        ("seed,hair\n1,inf", "no table of scores"),
        ("seed,hair\n1", "no table of scores"),
        ("seed,hair\n1,x", "no table of scores"),
        ("name,hair\n1,2", "no table of scores"),
        ("seed\n1", "no scores"),
        ("", "no scores"),
        ("seed,hair\n1,2", "too few"),
    ):
        Path("scores.csv").write_text(text)
        call(invert.main, *base).assert_refused(1, words)
    for others in (("p0.png",), ("--seconds", "3"), ("--label", LABEL), ("--outdir", "x")):
        call(invert.main, *base, *others).assert_refused(2, "--scores")


def test_an_encoder_of_the_command_line(folder: Path) -> None:
    """Trained, kept in the file, asked; what goes with nothing else is refused."""
    bare = write(folder / "bare.pkl", latents={}, directions={})
    base = ("--network", bare, "--train-encoder", "3", "--dest", "with.pkl")
    assert "Wrote with.pkl" in call(invert.main, *base).assert_done().out
    assert load_generator("with.pkl").encoder
    assert not Path("with.state").exists()
    photo = ("--network", "with.pkl", "p0.png", "--optimise-pose", "--method", "encoder")
    call(invert.main, *photo).assert_done()
    assert report("p0")["method"] == "encoder"
    assert load_generator("out/p0.pkl").encoder  # the network is as it was
    without = call(invert.main, "--network", bare, *photo[2:])
    without.assert_refused(1, "holds no encoder")
    for others in (("p0.png",), ("--seconds", "3"), ("--scores", "x.csv")):
        call(invert.main, *base, *others).assert_refused(2, "-")
    for dest in ("with.html", "with.onnx", "with.glb"):  # they would hold no encoder
        call(invert.main, *base[:-1], dest).assert_refused(1, f"{dest} is neither NAME.pkl")
        assert not list(Path().glob("with.[!p]*"))
    Path("with.state").write_bytes(b"no state")
    call(invert.main, *base).assert_refused(1, "with.state")


def test_wrong_input_is_one_line(network: Path, tmp_path: Path) -> None:
    small = Image.new("RGB", (20, 20))
    small.save("small.png")
    Path("heic.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    Path("empty.png").touch()
    picture().save("nobody.png")
    bare = write(tmp_path / "bare.pkl", cameras_are_known=False)
    plugin = ("--estimator", "plugin:discs")
    pixels = LABEL.split(",")
    pixels[16] = "512"
    for status, words, options in (
        (1, "no face found; give --label", ("nobody.png", *plugin)),
        (1, "too small", ("small.png", "--label", LABEL)),
        (1, "HEIC", ("heic.jpg", "--label", LABEL)),
        (1, "empty file", ("empty.png", "--label", LABEL)),
        (1, "cannot read none.png", ("none.png", "--label", LABEL)),
        (1, "24 numbers instead of 25", ("p0.png", "--label", LABEL.rpartition(",")[0])),
        (1, "neither 25 numbers nor", ("p0.png", "--label", "frontal")),
        (1, "look like pixels", ("p0.png", "--label", ",".join(pixels))),
        (1, "knows no cameras", ("p0.png", "--network", bare, "--optimise-pose")),
        (2, "one of them", ()),
        (2, "one of them", ("p0.png", "--data", "x.zip")),
        (2, "leave one out", ("p0.png", "--label", LABEL, "--poses", "p.json")),
        (1, "x.zip does not exist", ("--data", "x.zip")),
        (2, "--mask", ("--data", ".", "--mask", "p0.png")),
        (2, "--same-person", ("--data", ".", "--same-person", "eve")),
        (2, "--scores", ("p0.png", "--dest", "x.pkl")),
        (2, "--face", ("p0.png", "--label", LABEL, "--face", "2")),
        (2, "--face", ("p0.png", "--optimise-pose", "--face", "2")),
        (2, "--optimise-focal", ("p0.png", "--label", LABEL, "--optimise-focal")),
    ):
        ended = call(invert.main, "--network", network, *QUICK, *options)
        assert ended.status == status, (words, ended)
        assert ended.lines[-1].startswith("error: "), ended
        assert words in ended.lines[-1]
        assert "Traceback" not in ended.err
    assert not Path("out").exists() or not list(Path("out").iterdir())
    two = picture((BLUE, 120, 150, 40), (RED, 280, 150, 50))
    two.save("two.png")
    ended = call(invert.main, "--network", network, "two.png", *plugin, "--face", "3")
    assert "--face 3, but 2 are found" in ended.lines[-1]


def test_avif_is_read(network: Path) -> None:
    with Image.open("p0.png") as file:
        file.save("p.avif")
    options = ("--network", network, "p.avif", "--label", LABEL, *QUICK, "--method", "w")
    call(invert.main, *options).assert_done()


def test_unpacked_archives_of_photos(network: Path) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("a/x.png", encode(np.asarray(picture((RED, 200, 150, 50)))))
    options = ("--network", network, "--data", "photos.zip", "--method", "w", *QUICK)
    call(invert.main, *options, "--estimator", "plugin:discs").assert_done()
    assert Path("out/a_x.json").exists()
