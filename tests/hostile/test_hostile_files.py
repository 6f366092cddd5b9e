"""None of these files is run, none takes more than 10 s or 2 GB, and each is answered with one
line.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dnnlib.console import LONGEST_LINE
from tests.hostile import archives, datasets, judge, pickles
from tests.released_layout import Builder, Layout, write_pickle, write_snapshot
from tests.tiny import ROOT, environment, finish, start

SMALL = Layout(
    z_dim=2,
    w_dim=2,
    channel_base=16,
    channel_max=2,
    plane_resolution=8,
    plane_channels=2,
    decoder_hidden=2,
)
FLIPS = 200


class Court:
    """Files with the loader that is to open each, and what came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary = folder, folder / "canary"
        self.jobs: dict[str, tuple[str, Path]] = {}
        self.families: dict[str, list[str]] = {}

    def add(
        self, family: str, loader: str, files: Mapping[str, bytes | Path | Callable[[], Path]]
    ) -> None:
        """Files by name: their bytes, where they are, or a function that writes one."""
        for name, content in files.items():
            path = self.folder / f"{len(self.jobs):04d}.pkl"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path = content if isinstance(content, Path) else content()
            self.jobs[f"{family}: {name}"] = loader, path
            self.families.setdefault(family, []).append(f"{family}: {name}")

    def reports(self) -> dict[str, dict[str, Any]]:
        """What came of all files."""
        listed, results = self.folder / "jobs.json", self.folder / "results.json"
        listed.write_text(json.dumps([[loader, str(path)] for loader, path in self.jobs.values()]))
        command = [sys.executable, "-m", "tests.hostile.judge", str(listed), str(results)]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return dict(zip(self.jobs, json.loads(results.read_text()), strict=True))


def add_pickles(court: Court) -> None:
    court.add("exploit", "weights", pickles.exploits(court.canary))
    court.add("exploit of a reader", "weights", pickles.tricks(court.canary))
    court.add("excess", "weights", pickles.excesses())
    layout = Layout(module_src=f"open({str(court.canary)!r}, 'w').close()", plane_channels=4)
    for name, write in pickles.modules(layout, court.folder / "modules.pkl").items():
        court.add("modules", "weights", {name: write().read_bytes()})


def add_archives(court: Court) -> None:
    for family, files in (
        ("code", archives.code_archives(court.canary)),
        ("lying archive", archives.lying_archives(court.folder)),
        ("excessive archive", archives.excessive_archives()),
    ):
        court.add(family, "weights", files)
        court.add(f"{family}, resumed", "checkpoint", files)


def add_folders(court: Court) -> None:
    good = archives.good_folder(court.folder / "good-folder")

    def folder(member: str, content: bytes) -> Callable[[], Path]:
        def write() -> Path:
            path = court.folder / f"folder{len(court.jobs)}"
            shutil.copytree(good, path)
            (path / member).write_bytes(content)
            return path

        return write

    for name, content in archives.lying_safetensors().items():
        court.add("safetensors", "weights", {name: folder("model.safetensors", content)})
    for name, content in archives.config_files().items():
        court.add("config.json", "weights", {name: folder("config.json", content)})
    court.add("folder", "weights", archives.folder_writers(court.folder))


def add_data(court: Court) -> None:
    for name, write in datasets.data_archives().items():
        court.add("data", "data", {name: write(court.folder / f"data{len(court.jobs)}")})
    for family, sources in (("source", datasets.SOURCES), ("large source", datasets.LARGE_SOURCES)):
        for name, make in sources.items():
            path = court.folder / f"source{len(court.jobs)}.zip"
            court.add(
                family, "source", {name: datasets.plain_zip(path, make(), zipfile.ZIP_DEFLATED)}
            )


def good_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """A whole file of each kind, with its loader."""
    weights = archives.good_folder(folder / "good")
    return {
        "snapshot": (
            "weights",
            write_pickle(folder / "snapshot.pkl", {"G_ema": Builder(SMALL).synthesis("s")}),
        ),
        "checkpoint": ("checkpoint", archives.good_checkpoint(folder / "checkpoint.pkl")),
        "safetensors": ("weights", weights / "model.safetensors"),
        "config": ("weights", weights / "config.json"),
        "data": ("data", datasets.good_data(folder / "data.zip")),
    }


def add_damage(court: Court) -> None:
    """Cut off at every hundredth of the length, and with single bits turned."""
    for kind, (loader, path) in good_files(court.folder).items():
        whole = path.read_bytes()
        for percent in range(100):
            cut = whole[: len(whole) * percent // 100]
            court.add(f"cut {kind}", loader, {f"{percent} %": damaged(court, kind, path, cut)})
        for index in range(FLIPS):
            place = (index * 2654435761 + 12345) % (8 * len(whole))
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << place % 8
            court.add(
                f"flipped {kind}",
                loader,
                {f"bit {place}": damaged(court, kind, path, bytes(flipped))},
            )


def damaged(court: Court, kind: str, path: Path, content: bytes) -> bytes | Path:
    """The bytes, or for a file of a folder a copy of the folder."""
    if kind not in ("safetensors", "config"):
        return content
    copy = court.folder / f"damaged{len(court.jobs)}"
    copy.mkdir()
    for other in path.parent.iterdir():
        (copy / other.name).write_bytes(content if other == path else other.read_bytes())
    return copy


KINDS = [
    pytest.param((add_pickles, add_archives, add_folders, add_data), id="made"),
    pytest.param((add_damage,), id="damaged", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def court(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Court:
    court = Court(tmp_path_factory.mktemp("hostile"))
    for add in request.param:
        add(court)
    return court


@pytest.fixture(scope="module")
def reports(court: Court) -> dict[str, dict[str, Any]]:
    return court.reports()


def test_there_are_enough(court: Court) -> None:
    different = [name for name in court.jobs if ", resumed" not in name]
    assert len(different) >= 150


def test_nothing_is_run(court: Court, reports: dict[str, dict[str, Any]]) -> None:
    assert not court.canary.exists()
    assert {name: report["ran"] for name, report in reports.items() if report["ran"]} == {}


def test_none_crashes_or_hangs(reports: dict[str, dict[str, Any]]) -> None:
    assert {
        name: report
        for name, report in reports.items()
        if report["outcome"] not in ("read", "refused")
    } == {}


def test_none_takes_much_time(reports: dict[str, dict[str, Any]]) -> None:
    assert {
        name: report["seconds"]
        for name, report in reports.items()
        if report["seconds"] > judge.CPU_SECONDS
    } == {}


def test_none_takes_much_memory(reports: dict[str, dict[str, Any]]) -> None:
    assert {
        name: report["bytes"] >> 20
        for name, report in reports.items()
        if report["bytes"] > judge.MEMORY_BYTES
    } == {}


# Bits that are no part of what the file says or change a number to another one; what is odd and
# does no harm; and weights that are compared with a network only when one is built from them.
HARMLESS = (
    "flipped", "large source", "modules: embedded source", "data: folders in a ring",
    "data: rows without end", "data: a palette without colours",
    "excessive archive, resumed: weights", "excessive archive, resumed: cameras",
)  # fmt: skip


def test_each_is_answered_with_one_line(reports: dict[str, dict[str, Any]]) -> None:
    wrong = {
        name: report["message"]
        for name, report in reports.items()
        if report["outcome"] == "refused"
        and not (
            report["message"].isprintable() and 10 < len(report["message"]) < LONGEST_LINE + 100
        )
    }
    assert wrong == {}
    assert [
        name
        for name, report in reports.items()
        if report["outcome"] == "read" and not name.startswith(HARMLESS)
    ] == []


def test_turned_bits_of_checkpoints_are_noticed(
    court: Court, reports: dict[str, dict[str, Any]]
) -> None:
    """What a turned bit does not change in the archive's own records changes nothing that is
    read.
    """
    whole = torch.load(archives.good_checkpoint(court.folder / "again.pkl"), weights_only=True)[
        "G_ema"
    ]
    for name in court.families.get("flipped checkpoint", []):
        if reports[name]["outcome"] == "read":
            state = torch.load(court.jobs[name][1], weights_only=True)["G_ema"]
            assert all(torch.equal(state[key], value) for key, value in whole.items()), name


def test_the_exploits_are_real(tmp_path: Path) -> None:
    """Loaded the usual way, they leave the file that must never appear."""
    canary = tmp_path / "canary"
    real = 0
    for name, content in pickles.exploits(canary).items():
        program = f"import pickle\ntry: pickle.loads({content!r})\nexcept Exception: pass"
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        real += canary.exists()
        canary.unlink(missing_ok=True)
        assert name
    assert real >= 15


def test_the_judge_notices(tmp_path: Path) -> None:
    """Time, memory, crashes, and code: each is seen where it happens."""
    path = tmp_path / "judged.pkl"
    path.write_bytes(pickle.dumps(pickles.Executes(print, "x")))
    loaders: dict[str, Callable[[Path], None]] = {
        "busy": lambda _: print(all(True for _ in iter(int, 1))),
        "large": lambda _: print(len(bytearray(3 << 30))),
        "crash": lambda _: print(1 // 0),
        "system": lambda _: print(__import__("os").system("true")),
        "touched": lambda _: print(len(bytearray(500 << 20))),
    }
    before = dict(judge.LOADERS), judge.CPU_SECONDS
    judge.LOADERS |= loaders
    judge.CPU_SECONDS = 1
    try:
        found = {name: judge.judge(name, path) for name in loaders}
    finally:
        judge.LOADERS.clear()
        judge.LOADERS |= before[0]
        judge.CPU_SECONDS = before[1]
    assert found["busy"]["outcome"].startswith("killed")
    assert "MemoryError" in found["large"]["message"]
    assert "ZeroDivisionError" in found["crash"]["message"]
    assert found["system"]["ran"] == ["os.system"]
    assert found["touched"]["bytes"] > 500 << 20


COMMANDS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("gen_samples.py", "exploit: getattr chain", ("--network", ..., "--outdir", "out")),
    ("export.py", "code: torch.save of a call", ("--network", ..., "--dest", "out.pkl")),
    (
        "calc_metrics.py",
        "excessive archive: doubling for ever",
        ("--network", ..., "--metrics", "speed"),
    ),
    (
        "export.py",
        "excessive archive: a text for the terminal",
        ("--network", ..., "--dest", "out.onnx"),
    ),
    ("train.py", "data: labels said to be small", ("--data", ..., "--gpus", "0")),
    (
        "dataset_tool.py",
        "data: a name above",
        ("convert", "--source", ..., "--dest", "out.zip", "--resolution", "64"),
    ),
]


@pytest.mark.parametrize("court", KINDS[:1], indirect=True)
def test_the_real_command_lines(court: Court, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for script, name, options in COMMANDS:
        arguments = [str(court.jobs[name][1]) if value is ... else value for value in options]
        finish(start(script, *arguments, cwd=tmp_path / "empty")).assert_refused(1)
    assert not court.canary.exists()
    assert [path for path in (tmp_path / "empty").rglob("*") if path.is_file()] == []


def test_a_snapshot_with_source_is_read_without_running_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = write_snapshot(
        tmp_path / "s.pkl", Layout(module_src=f"open({str(canary)!r}, 'w')", plane_channels=4)
    )
    assert judge.judge("weights", path)["outcome"] == "read"
    assert not canary.exists()
