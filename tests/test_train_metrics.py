"""train.py --metrics: the figures of calc_metrics.py at every snapshot, and a training that does
not notice.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import calc_metrics
import train
from dnnlib.console import UserError
from metrics.options import MetricOptions
from metrics.processes import Cancelled, OtherProcessFailed, WorkerGroup
from open_eg3d import measuring
from open_eg3d.measuring import SnapshotMetrics
from tests.metrics.networks import inception_weights
from tests.tiny import (
    TINY_OPTIONS,
    Ended,
    call,
    differing,
    kimg,
    only_run,
    state_in,
    tiny_config,
    write_dataset,
)
from torch_utils.distributed.processes import run_processes
from training.checkpoints.checkpoint import load_checkpoint
from training.run.loop import RunOptions, run_training

NAMES = "fid8_full_lite0,kid8_lite0,relief3"
# these random weights show a surface to measure
DENSE = ("--set", "rendering.density_gain=30", "--seed", "3")
METRICS = ("--metrics", NAMES)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_EG3D_CACHE", str(folder))
        patch.setenv("TORCH_HOME", str(folder / "hub"))
        # compiled operators would be built anew in a fresh cache
        patch.setenv("OPEN_EG3D_OPS", "reference")
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "blots.zip", 15)


def trained(data: Path, outdir: Path, *arguments: str | Path, steps: int = 3) -> Ended:
    """A run of some steps with a snapshot after each second."""
    options = (*TINY_OPTIONS, *DENSE, "--mirror", "--snap", "2", "--kimg", kimg(steps))
    return call(train.main, "--data", data, "--outdir", outdir, *options, *arguments)


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --------------------------------------------------------------------------------------------------
# The same figures, and the same training


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What three steps without metrics end with."""
    outdir = tmp_path_factory.mktemp("plain")
    trained(data, outdir).assert_done()
    return state_in(only_run(outdir))


def test_training_ends_bit_for_bit_the_same_and_figures_are_those_of_calc_metrics(
    data: Path, plain: dict[str, Any], tmp_path: Path
):
    trained(data, tmp_path, *METRICS).assert_done()
    run_dir = only_run(tmp_path)
    assert differing(plain, state_in(run_dir)) == []
    snapshots = sorted(run_dir.glob("network-snapshot-*.pkl"))
    last = snapshots[-1]
    arguments = (
        "--network",
        last,
        "--data",
        data,
        "--mirror",
        "--metrics",
        NAMES,
        "--batch",
        "4",
        "--device",
        "cpu",
        "--json",
    )
    by_hand = call(calc_metrics.main, *arguments, "--outdir", tmp_path / "out").assert_done()
    events = EventAccumulator(str(run_dir))
    events.Reload()
    log = (run_dir / "log.txt").read_text()
    for expected in map(json.loads, by_hand.out.splitlines()):
        lines = lines_in(run_dir / f"metric-{expected['metric']}.jsonl")
        assert [line["kimg"] for line in lines] == [0.008, 0.012]
        assert lines[-1]["results"] == expected["results"]
        assert lines[-1]["protocol"] == expected["protocol"]
        assert lines[-1]["network"] == str(last)
        for name, value in expected["results"].items():
            assert [scalar.step for scalar in events.Scalars(f"Metrics/{name}")] == [8, 12]
            assert events.Scalars(f"Metrics/{name}")[-1].value == pytest.approx(value, rel=1e-6)
            assert f"{name} {value:.6g}" in log
    # with the mirror images that it trains with
    assert json.loads(by_hand.out.splitlines()[0])["protocol"]["reals"] == 30


def test_several_processes_measure_together(data: Path, tmp_path: Path):
    arguments: tuple[str | Path, ...] = (
        "--data",
        data,
        "--outdir",
        tmp_path,
        *TINY_OPTIONS,
        *DENSE,
        "--kimg",
        kimg(2),
        "--procs",
        "2",
    )
    call(train.main, *arguments, *METRICS).assert_done()
    call(train.main, *arguments).assert_done()
    first, second = sorted(tmp_path.iterdir())
    assert differing(state_in(first), state_in(second)) == []
    last = sorted(first.glob("network-snapshot-*.pkl"))[-1]
    calc: tuple[str | Path, ...] = (
        "--network",
        last,
        "--data",
        data,
        "--metrics",
        NAMES,
        "--batch",
        "2",
        "--device",
        "cpu",
        "--json",
    )
    ended = call(calc_metrics.main, *calc, "--outdir", tmp_path / "out").assert_done()
    for expected in map(json.loads, ended.out.splitlines()):
        (line,) = lines_in(first / f"metric-{expected['metric']}.jsonl")
        assert line["results"] == pytest.approx(expected["results"], rel=1e-6)
        assert line["protocol"] == expected["protocol"]
    assert not list(second.glob("metric-*"))


def test_the_published_network_is_the_default(data: Path, tmp_path: Path):
    torch.save(inception_weights(), tmp_path / "inception.pth")
    ended = trained(
        data,
        tmp_path / "runs",
        "--metrics",
        "is10",
        "--detector-weights",
        tmp_path / "inception.pth",
        steps=1,
    )
    ended.assert_done()
    (line,) = lines_in(only_run(tmp_path / "runs") / "metric-is10.jsonl")
    assert line["protocol"]["detector"] == "inception"
    assert line["results"]["is10"] >= 1


# --------------------------------------------------------------------------------------------------
# Going on


def test_a_run_goes_on_with_its_metrics_and_forgets_what_is_measured_again(
    data: Path, tmp_path: Path
):
    trained(data, tmp_path, "--metrics", "relief2", steps=4).assert_done()
    run_dir = only_run(tmp_path)
    path = run_dir / "metric-relief2.jsonl"
    whole = lines_in(path)
    assert [line["kimg"] for line in whole] == [0.008, 0.016]
    with path.open("a") as file:
        # of no known moment: stays
        file.write('{"metric": "relief2", "results": {"relief2_relief": 1}}\n')
    first, _ = sorted(run_dir.glob("network-snapshot-*.pkl"))
    call(train.main, "--resume", first, "--gpus", "0", "--kimg", kimg(4)).assert_done()
    lines = lines_in(path)
    assert [line.get("kimg") for line in lines] == [0.008, None, 0.016]
    assert lines[-1]["results"] == whole[-1]["results"]
    call(
        train.main, "--resume", run_dir, "--gpus", "0", "--kimg", kimg(6), "--metrics", "none"
    ).assert_done()
    assert lines_in(path) == lines
    assert (
        load_checkpoint(sorted(run_dir.glob("network-snapshot-*.pkl"))[-1]).config.snapshot.metrics
        == ()
    )


# --------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--metrics", "fvd2k"), 2, ("--metrics", "fvd2k", "fidN_full")),
        (("--metrics", "none,fid2k"), 2, ("--metrics", "'none'")),
        (("--set", 'snapshot.metrics=["fvd2k"]'), 2, ("snapshot.metrics", "fvd2k")),
        (("--metrics", "relief4", "--detector", "vgg"), 2, ("--detector", "lite0")),
        (("--metrics", "fid31_lite0"), 1, ("fid31_lite0 needs 31 real pictures", "30", "_full")),
        (("--metrics", "depth4"), 1, ("no depth maps",)),
        (("--metrics", "identity4"), 1, ("--identity-model",)),
        (
            ("--metrics", "is20"),
            1,
            ("--detector-weights FILE", "weights-inception-2015-12-05-6726825d.pth"),
        ),
        (("--metrics", "is20", "--detector-weights", "absent.pth"), 1, ("absent.pth",)),
        (("--metrics", "ppl2_wend"), 1, ("--lpips-weights FILE",)),
        (("--metrics", "pose4", "--pose-model", "absent.onnx"), 1, ("absent.onnx",)),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_training(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    words: tuple[str, ...],
):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    trained(data, tmp_path / "runs", *arguments).assert_refused(status, *words)
    assert not list(tmp_path.rglob("network-snapshot-*"))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_metric_that_fails_costs_a_line_not_the_training(
    data: Path, tmp_path: Path, plain: dict[str, Any], monkeypatch: Any
):
    calls = []

    def broken(*_: object) -> Any:
        calls.append(1)
        torch.rand(3)  # and leaves the random numbers elsewhere
        raise (
            UserError("the features are not finite")
            if len(calls) == 1
            else torch.OutOfMemoryError("no room")
        )

    monkeypatch.setattr(measuring, "evaluate", broken)
    ended = trained(data, tmp_path, "--metrics", "relief2").assert_done()
    assert len(calls) == 2
    run_dir = only_run(tmp_path)
    log = (run_dir / "log.txt").read_text()
    for words in (
        "no metrics of network-snapshot-000000.008.pkl: the features are not finite",
        "OutOfMemoryError: no room",
    ):
        assert words in log
        assert words in ended.out + ended.err
    assert differing(plain, state_in(run_dir)) == []
    assert not list(run_dir.glob("metric-*"))


def test_figures_keep_all_digits_in_a_training_with_tf32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def allowed() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def look(*_: object) -> list[Any]:
        seen.append(allowed())
        return []

    monkeypatch.setattr(measuring, "evaluate", look)
    before = allowed()
    try:
        trained(data, tmp_path, "--metrics", "relief2", "--precision", "tf32").assert_done()
        assert allowed() == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [(False, False)] * 2


def test_a_broken_picture_that_is_left_out_keeps_nobody_from_measuring(tmp_path: Path):
    broken = write_dataset(tmp_path / "broken.zip", 15, files={"00000/img00000000.png": b"none"})
    trained(broken, tmp_path / "runs", "--metrics", "relief2").assert_refused(1, "cannot be read")
    arguments = ("--metrics", "relief2", "--max-broken", "1", "--dry-run")
    trained(broken, tmp_path / "runs", *arguments).assert_done()
    metrics_run = trained(broken, tmp_path / "runs", *arguments[:-1]).assert_done()
    assert "left out" in metrics_run.err
    assert list(only_run(tmp_path / "runs").glob("metric-relief2.jsonl"))


def test_a_stop_does_not_wait_for_metrics(data: Path, tmp_path: Path):
    config = tiny_config("training.kimg=0.008", "snapshot.tick_kimg=0.004", "snapshot.snap_ticks=1")
    config.data.path = str(data)
    seen = []

    def stop_and_measure(state: Any) -> None:
        state.is_stopping = lambda: True
        SnapshotMetrics(("relief2",), MetricOptions())(state)
        seen.append(state.checkpoint)

    run_training(config, RunOptions(tmp_path, CPU, metrics=(stop_and_measure,)))
    assert len(seen) == 3
    assert "were not finished before the stop" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("metric-*"))


# --------------------------------------------------------------------------------------------------
# Processes of which one fails


def attempts(_: torch.device, folder: Path) -> None:
    """Work in which some process fails at one point or another; all must come out of it, and can
    then work together again.
    """
    team = WorkerGroup.of_group(CPU)
    outcomes: list[float | str] = []

    def work(failing: tuple[int, ...], when: int) -> float:
        total = 0.0
        for step in range(3):
            if step == when and team.rank in failing:
                raise ValueError(f"step {step}")
            total += float(team.sum(torch.ones(1)))
        if when == 3 and team.rank in failing:
            raise ValueError("at the end")
        return total

    for failing in ((), (0,), (1,), (0, 2), (0, 1, 2)):
        for when in range(4):
            try:
                outcomes.append(team.together(functools.partial(work, failing, when)))
            except ValueError:
                outcomes.append("own")
            except OtherProcessFailed:
                outcomes.append("other")
    (folder / f"{team.rank}.json").write_text(json.dumps(outcomes))


def test_no_process_waits_for_one_that_failed(tmp_path: Path):
    run_processes(3, "cpu", attempts, tmp_path, hint="")
    expected = {
        0: [9.0, "own", "other", "own", "own"],
        1: [9.0, "other", "own", "other", "own"],
        2: [9.0, "other", "other", "own", "own"],
    }
    for rank, outcomes in expected.items():
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [
            outcome for outcome in outcomes for _ in range(4)
        ]


def test_work_alone_fails_as_it_is_and_stops_when_told():
    with pytest.raises(ValueError, match="mine"):
        WorkerGroup().together(lambda: int("mine"))
    answers = iter([False, False, True])
    parts = WorkerGroup(is_cancelled=lambda: next(answers)).batches(10, 2)
    assert [next(parts), next(parts)] == [(0, 2), (2, 2)]
    with pytest.raises(Cancelled):
        next(parts)
