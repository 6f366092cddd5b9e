"""A file's name that is empty, as of a shell variable that is not set, is never taken for an option
that was not given.
"""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import calc_metrics
import dataset_tool
import export
import gen_samples
import gen_videos
import invert
import train
from tests.tiny import call, write_dataset


@pytest.mark.parametrize("option", ["--data", "--resume", "--init-from"])
def test_train(option: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data.zip")
    given = ("--data", data) if option != "--data" else ()
    call(
        train.main, *given, option, "", "--gpus", "0", "--outdir", tmp_path / "runs", "-n"
    ).assert_refused(2, option, "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (gen_samples.main, ()),
        (gen_videos.main, ()),
        (export.main, ("--dest", "model")),
        (invert.main, ("photo.jpg", "--optimise-pose")),
        (calc_metrics.main, ("--metrics", "relief4")),
    ],
    ids=["gen_samples", "gen_videos", "export", "invert", "calc_metrics"],
)
def test_networks(
    command: click.Command,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    call(command, "--network", "", *arguments).assert_refused(1, "empty")


@pytest.mark.parametrize("command", ["check", "convert", "mirror", "rebalance"])
def test_sources(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder in which the command runs, which may well hold a data set."""
    monkeypatch.chdir(tmp_path)
    dest = () if command == "check" else ("--dest", "o.zip")
    call(dataset_tool.main, command, "--source", "", *dest).assert_refused(
        1, "name of a file is empty"
    )
    assert not list(tmp_path.iterdir())


def test_data_of_calc_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(
        calc_metrics.main, "--network", "model.pkl", "--data", "", "--metrics", "relief4"
    ).assert_refused(1, "empty")
