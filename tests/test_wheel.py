"""The built package, away from the checkout: all that it needs is inside, and its commands run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.tiny import TINY_OPTIONS, kimg, write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("data_tools", "dnnlib", "media", "metrics", "open_eg3d", "torch_utils", "training")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files behind."""
    source = tmp_path_factory.mktemp("source") / "project"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *(p.name for p in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, source)
    for room in (*ROOMS, "models"):
        shutil.copytree(
            ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    target = tmp_path_factory.mktemp("wheel")
    pip(["wheel", "--no-build-isolation", "--wheel-dir", str(target), str(source)])
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and nothing else; its dependencies are those of this Python."""
    target = tmp_path_factory.mktemp("installed")
    pip(["install", "--target", str(target), str(wheel)])
    return target


def pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def run(
    installed: Path, command: list[str], folder: Path, *first: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the installed package on the path, after `first`."""
    path = os.pathsep.join(map(str, (*first, installed)))
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def script(installed: Path, name: str, *options: str) -> list[str]:
    return [str(installed / "bin" / name), *options]


def test_all_files_are_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= inside, wanted - inside
    assert {"models/heads64.pkl", "models/figures.json"} <= inside
    assert not {name for name in inside if name.startswith(("tests/", "docs/", "benchmarks/"))}


def test_it_is_used_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """Kernels are built from the sources inside; the shipped model is found."""
    code = """
import open_eg3d
from torch_utils.ops import library
G = open_eg3d.load_generator(open_eg3d.SHIPPED_MODEL)
ws = open_eg3d.map_latents(G, open_eg3d.seed_latents(G, 0))
print(open_eg3d.__file__, open_eg3d.SHIPPED_MODEL, library.load())
open_eg3d.export(G, "page.html", seeds=[0])
print(open_eg3d.render(G, ws, open_eg3d.view_label(G)).pictures().shape)
"""
    ended = run(installed, [sys.executable, "-c", code], tmp_path)
    assert ended.returncode == 0, ended.stderr
    file, model, is_compiled, *shape = ended.stdout.split()
    assert Path(file).is_relative_to(installed)
    assert Path(model) == installed / "models" / "heads64.pkl"
    assert is_compiled == "True"
    assert shape == ["(1,", "1,", "64,", "64,", "3)"]
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_commands_say_what_they_do(name: str, installed: Path, tmp_path: Path) -> None:
    ended = run(installed, script(installed, name, "--help"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"Usage: {name} " in ended.stdout


def test_every_command_line_is_a_command() -> None:
    scripts = {entry.rpartition(":")[2] for entry in PROJECT["scripts"].values()}
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert scripts == set(modules["py-modules"])
    for name, entry in PROJECT["scripts"].items():
        assert name == "eg3d-" + entry.rpartition(":")[2].replace("_", "-")


def test_a_command_trains_with_several_processes(installed: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "faces.zip")
    options = ["--data", str(data), "--outdir", "runs", "--kimg", kimg(2), "--procs", "2"]
    ended = run(installed, script(installed, "eg3d-train", *TINY_OPTIONS, *options), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("runs/*/network-snapshot-*.pkl"))


def test_mistakes_are_one_line(installed: Path, tmp_path: Path) -> None:
    ended = run(installed, script(installed, "eg3d-gen-samples", "--network", "no.pkl"), tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_script_of_the_same_name_is_told(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    ended = run(installed, script(installed, "eg3d-train", "--help"), tmp_path, tmp_path)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: open_eg3d needs its own train ")
    assert str(tmp_path / "train.py") in line
