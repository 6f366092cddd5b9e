"""dataset_tool.py as people run it: what it prints, its exit status, and what it leaves behind when
it is stopped.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import dataset_tool
from tests.data_tools import scenes
from tests.data_tools.scenes import OPENGL, Scene, orbit
from tests.tiny import PATIENCE, ROOT, Ended, call, environment, finish, start
from training.data.dataset import ImageDataset

LENS = np.array([[96.0, 0, 32], [0, 96, 32], [0, 0, 1]])


def tool(*arguments: str | Path) -> Ended:
    """Run the command in this process."""
    return call(dataset_tool.main, *arguments)


def good_set(folder: Path, cam2world: Any = None) -> Path:
    cameras = orbit(8, yaw=40) if cam2world is None else cam2world
    return scenes.write_labels(Scene(cameras, intrinsics=LENS, size=(64, 64)), folder)


OPTIONS = {
    "convert": (
        "--angles --background --camera-axes --crop --dest --focal --format --help --intrinsics "
        "--no-crop --no-recentre --overwrite --pivot --poses --radius --recentre --resolution "
        "--seed --skip-bad --source --up --workers"
    ),
    "mirror": "--dest --help --overwrite --source --workers",
    "rebalance": "--bins --dest --factor --help --overwrite --source",
    "faces": (
        "--background --dest --estimator --help --keep-roll --min-size --overwrite --pick "
        "--resolution --setup --skip-bad --source --workers"
    ),
    "check": "--cfg --help --json --pictures --source --strict --workers",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_option_names(command: str):
    listed = tool(command, "--help").assert_done().out.partition("Options:")[2]
    names = {
        name
        for line in listed.splitlines()
        if re.match(r"  -", line)
        for name in re.findall(r"--[a-z-]+", line[:45])
    }
    assert names == set(OPTIONS[command].split())


def test_from_a_nerf_scene_to_a_checked_data_set(tmp_path: Path):
    """Each command as a process of its own."""
    source = scenes.write_transforms(Scene(orbit(40, up="z")), tmp_path / "scene")
    data, mirrored = tmp_path / "data.zip", tmp_path / "mirrored.zip"
    done = finish(
        start(
            "dataset_tool.py",
            "convert",
            "--source",
            source,
            "--dest",
            data,
            "--resolution",
            "32",
            "--workers",
            "2",
        )
    ).assert_done()
    assert "wrote 40 images of 32 pixels" in done.out
    assert any("z was up" in line for line in done.lines)
    finish(
        start("dataset_tool.py", "mirror", "--source", data, "--dest", mirrored, "--workers", "1")
    ).assert_done()
    assert len(ImageDataset(mirrored)) == 80
    checked = finish(
        start(
            "dataset_tool.py",
            "check",
            "--source",
            mirrored,
            "--strict",
            "--pictures",
            tmp_path / "pictures",
        )
    ).assert_done()
    assert "no problems found" in checked.out
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "cameras.png",
        "contact.png",
    ]


def test_rebalance(tmp_path: Path):
    """Five views from one side and one from the other: with two bins and no limit, five and
    five.
    """
    up = np.array([0.0, 1, 0])
    cameras = np.stack(
        [
            scenes.look_at(2.0 * np.array([np.sin(a), 0.1, np.cos(a)]), np.zeros(3), up)
            for a in (0, 0.1, 0.2, 0.3, 0.4, -1)
        ]
    )
    source = good_set(tmp_path / "in", cameras)
    done = tool(
        "rebalance",
        "--source",
        source,
        "--dest",
        tmp_path / "o.zip",
        "--bins",
        "2",
        "--factor",
        "9",
    ).assert_done()
    assert done.out.startswith("wrote 10 images, 4 of them repeated")
    assert len(ImageDataset(tmp_path / "o.zip")) == 10


WRONG_OPTIONS = [
    (("convert", "--resolution", "48"), "--resolution"),
    (("convert", "--resolution", "2048"), "--resolution"),
    (("convert", "--background", "blue"), "--background"),
    (("convert", "--background", "1,2"), "--background"),
    (("convert", "--background", "1,2," + 5000 * "3"), "--background"),
    (("convert", "--pivot", "1,2"), "--pivot"),
    (("convert", "--pivot", "1,2,nan"), "--pivot"),
    (("convert", "--radius", "0"), "--radius"),
    (("convert", "--radius", "nan"), "--radius"),
    (("convert", "--focal", "-1"), "--focal"),
    (("convert", "--up", "w"), "--up"),
    (("convert", "--format", "nerf"), "--format"),
    (("convert", "--workers", "-1"), "--workers"),
    (("rebalance", "--factor", "0.5"), "--factor"),
    (("rebalance", "--factor", "nan"), "--factor"),
    (("rebalance", "--factor", "inf"), "--factor"),
    (("rebalance", "--bins", "0"), "--bins"),
    (("check", "--cfg", "dogs"), "--cfg"),
]


@pytest.mark.parametrize(
    ("arguments", "name"),
    WRONG_OPTIONS,
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_option_values(arguments: tuple[str, ...], name: str, tmp_path: Path):
    dest = () if arguments[0] == "check" else ("--dest", str(tmp_path / "o.zip"))
    tool(*arguments, "--source", tmp_path, *dest).assert_refused(2, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resolution", ["0", "48", "65536"])
def test_wrong_size_of_heads(resolution: str, tmp_path: Path):
    tool(
        "heads", "--dest", tmp_path / "o.zip", "--count", "2", "--resolution", resolution
    ).assert_refused(2, "--resolution")
    assert list(tmp_path.iterdir()) == []


def test_negative_axes_are_values_not_options(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(6, up="-z")), tmp_path / "in")
    done = tool(
        "convert",
        "--source",
        source,
        "--dest",
        tmp_path / "o.zip",
        "--up",
        "-z",
        "--resolution",
        "32",
    ).assert_done()
    assert any("-z was up" in line for line in done.lines)


def test_wrong_files_are_one_line(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    for command in ("convert", "mirror", "rebalance", "check"):
        dest = () if command == "check" else ("--dest", tmp_path / "o.zip")
        tool(command, "--source", tmp_path / "none", *dest).assert_refused(1, "does not exist")
        tool(command, "--source", tmp_path / "a.zip", *dest).assert_refused(1, "nor a whole ZIP")
    tool("convert", "--source", tmp_path / "pictures", "--dest", tmp_path / "o.zip").assert_refused(
        1, "docs/own-data.md"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "pictures"]


def test_pictures_left_out_are_listed(tmp_path: Path):
    source = good_set(tmp_path / "in")
    (source / "pics" / "p3.png").write_bytes(b"")
    tool("convert", "--source", source, "--dest", tmp_path / "o.zip").assert_refused(
        1, "p3.png cannot be read: it is an empty file"
    )
    done = tool(
        "convert", "--source", source, "--dest", tmp_path / "o.zip", "--skip-bad"
    ).assert_done()
    assert "wrote 7 images" in done.out
    assert [line for line in done.lines if line.startswith("left out: ") and "p3.png" in line]


# --------------------------------------------------------------------------------------------------
# check


def test_check_says_good_and_bad_by_its_status(tmp_path: Path):
    source = good_set(tmp_path / "good")
    assert tool("check", "--source", source, "--strict").assert_done().lines == []
    odd = good_set(tmp_path / "odd", orbit(8, yaw=40, radius=54.0))
    warned = tool("check", "--source", odd).assert_done()
    assert "--radius" in warned.out
    assert tool("check", "--source", odd, "--strict").status == 1
    (odd / "pics" / "p3.png").write_bytes(b"")
    refused = tool("check", "--source", odd)
    assert refused.status == 1
    assert "pics/p3.png cannot be read: it is an empty file" in refused.out
    assert "1 error, 1 warning" in refused.out


def test_check_for_machines(tmp_path: Path):
    source = good_set(tmp_path / "set")
    report = json.loads(tool("check", "--source", source, "--json").assert_done().out)
    assert (report["ok"], report["errors"], report["warnings"], report["summary"]["pictures"]) == (
        True,
        [],
        [],
        8,
    )
    (source / "dataset.json").unlink()
    ended = tool("check", "--source", source, "--json")
    assert ended.status == 1
    assert json.loads(ended.out)["errors"][0]["code"] == "no-labels"
    ended = tool("check", "--source", tmp_path / "none", "--json")
    assert ended.status == 1
    assert "does not exist" in json.loads(ended.out)["errors"][0]["message"]


def test_the_mend_that_is_printed_can_be_run(tmp_path: Path):
    cameras = orbit(20, yaw=60)
    source = good_set(tmp_path / "set", cameras)
    z_up = np.eye(4)
    z_up[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    lens = LENS / [[64], [64], [1]]
    labels = [
        [f"pics/p{i}.png", scenes.label_of(np.linalg.inv(z_up @ m @ OPENGL), lens)]
        for i, m in enumerate(cameras)
    ]
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    (line,) = [
        line
        for line in tool("check", "--source", source).out.splitlines()
        if line.startswith("mend: python dataset_tool.py ")
    ]
    arguments = line.removeprefix("mend: python dataset_tool.py ").split()
    arguments[arguments.index("mended.zip")] = str(tmp_path / "mended.zip")
    tool(*arguments).assert_done()
    tool("check", "--source", tmp_path / "mended.zip", "--strict").assert_done()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_names_that_are_not_utf8(tmp_path: Path):
    """Even where the terminal knows ASCII only."""
    source = good_set(tmp_path / "set")
    (source / os.fsdecode(b"p\xff.png")).write_bytes((source / "pics" / "p0.png").read_bytes())
    for option in ((), ("--json",)):
        ended = finish(
            start("dataset_tool.py", "check", "--source", source, *option, PYTHONIOENCODING="ascii")
        )
        assert "Traceback" not in ended.err
        assert ended.status == 1
        assert "udcff.png" in ended.out


# --------------------------------------------------------------------------------------------------
# Ended early


def large_source(folder: Path, count: int = 400) -> Path:
    """Pictures that take long enough to convert for somebody to change their mind; links, so that
    they are there at once.
    """
    source = good_set(folder)
    (source / "dataset.json").unlink()
    big = folder / "big.png"
    noise = np.random.RandomState(0).randint(0, 256, (1000, 1000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(big, compress_level=1)
    for index in range(count):
        os.link(big, folder / f"{index}.png")
    rows = [f"{index}.png,{index % 90 - 45},0,2.7,3" for index in range(count)]
    (folder / "list.csv").write_text("file,yaw,pitch,radius,focal\n" + "\n".join(rows))
    return source


@pytest.mark.waits
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["data.zip", "data"])
def test_stopped_in_the_middle_nothing_is_left(kind: signal.Signals, name: str, tmp_path: Path):
    source = large_source(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, str(ROOT / "dataset_tool.py"), "convert", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--source", str(source), "--dest", str(out / name)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while (
        sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 1 << 20
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if kind is signal.SIGINT:
        os.killpg(process.pid, kind)  # as a terminal does: to all of them
    else:
        process.send_signal(kind)
    ended = finish(process)
    assert (ended.status, ended.err.splitlines()[-1]) == (130, "error: interrupted")
    assert "Traceback" not in ended.err
    assert list(out.iterdir()) == []
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


@pytest.mark.parametrize("name", ["data.zip", "data"])
def test_full_disk_is_one_line(name: str, tmp_path: Path):
    """A limit on the size of files stands for the full disk; both fail in the middle of a write."""
    source = large_source(tmp_path / "in", 6)
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        str(ROOT / "dataset_tool.py"),
        "convert",
        "--source",
        str(source),
        "--dest",
        str(tmp_path / "out" / name),
    ]
    process = subprocess.Popen(
        [*command, "--workers", "1", "--resolution", "512"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    finish(process).assert_refused(1, "cannot write", name)
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    source = good_set(tmp_path / "in")
    tool("convert", "--source", source, "--dest", tmp_path / "file" / "o.zip").assert_refused(
        1, "file"
    )
