"""Messages of train.py that say what to do: what they say is done, and then it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dataset_tool
from dnnlib.console import UserError
from tests.tiny import BATCH, TINY_OPTIONS, call, kimg, tiny_config, write_dataset
from tests.train.runs import snapshot_in, train_here
from tests.training.gan.test_trainer import break_loss
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.config.checks import rendering_note
from training.config.settings import set_option
from training.gan import trainer as trainer_module
from training.gan.trainer import Trainer
from training.run import launch
from training.run.launch import choose_devices
from training.run.loop import RunOptions, run_training
from training.run.settings import FEW_PICTURES

NEW = ("--data", "DATA", *TINY_OPTIONS)
RESUME = ("--resume", "HALF", "--kimg", "1")
FRESH = ("--data", "DATA", "--init-from", "SNAPSHOT")
# Words of the refusal, what was typed, and what it says to type instead; DATA, HALF, SNAPSHOT and
# CONFIG stand for files.
ADVICE: list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]] = [
    (
        "leave these options out, or start a new run from its weights",
        (*RESUME, "--gamma", "3"),
        [RESUME, (*FRESH, "--gamma", "3")],
    ),
    ("it may only grow", ("--resume", "HALF", "--kimg", kimg(1)), [RESUME]),
    (
        "--resume and --init-from exclude each other",
        (*RESUME, "--init-from", "SNAPSHOT"),
        [RESUME, FRESH],
    ),
    ("add --dry-run", (*NEW, "--json", "RUN"), [(*NEW, "--json")]),
    ("for example --p 0.2", (*NEW, "--aug", "fixed"), [(*NEW, "--aug", "fixed", "--p", "0.2")]),
    (
        "add --aug ada or --aug fixed",
        (*NEW, "--p", "0.2"),
        [(*NEW, "--p", "0.2", "--aug", "ada"), (*NEW, "--p", "0.2", "--aug", "fixed")],
    ),
    (
        "--config and --cfg exclude each other",
        (*NEW, "--config", "CONFIG"),
        [NEW, ("--data", "DATA", "--config", "CONFIG")],
    ),
    ("leave it out of --set", (*NEW, "--set", "model.resolution=64"), [NEW]),
    (
        "or of the file of --config",
        ("--data", "DATA", "--config", "SIZED"),
        [("--data", "DATA", "--config", "UNSIZED")],
    ),
    (
        "choose a multiple of 3",
        (*NEW, "--procs", "3"),
        [(*NEW, "--procs", "3", "--batch", "6", "--batch-gpu", "1")],
    ),
    ("choose a divisor of 4", (*NEW, "--batch-gpu", "3"), [(*NEW, "--batch-gpu", "2")]),
    (
        "a multiple of 4, or --set discriminator.mbstd_group_size=1",
        (*NEW, "--batch", "6", "--set", "discriminator.mbstd_group_size=4"),
        [
            (*NEW, "--batch", "8", "--set", "discriminator.mbstd_group_size=4"),
            (*NEW, "--batch", "6", "--set", "discriminator.mbstd_group_size=1"),
        ],
    ),
    (
        "name a run folder or a snapshot",
        ("--resume", "EMPTY"),
        [RESUME, ("--resume", "SNAPSHOT", "--kimg", "1")],
    ),
    ("its newest run is", ("--resume", "RUNS"), [RESUME]),
    (
        "start a new one from a URL with --init-from",
        ("--resume", "http://localhost/run.pkl"),
        [FRESH],
    ),
    ("say where with --data", ("--resume", "GONE", "--kimg", "1"),
     [("--resume", "GONE", "--kimg", "1", "--data", "DATA")]),
    ("not the data that the run began with", (*RESUME, "--data", "OTHER"),
     [("--data", "OTHER", "--init-from", "SNAPSHOT")]),
]  # fmt: skip


@pytest.fixture
def files(half: Path, data: Path, tmp_path: Path) -> Callable[[str], str | Path]:
    """Names in the table to what they stand for."""
    (tmp_path / "empty").mkdir()
    gone = load_checkpoint(snapshot_in(half))
    gone.config.data.path = str(tmp_path / "gone.zip")
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "network-snapshot-000000.pkl", gone)
    (tmp_path / "c.json").write_text((half / "training_options.json").read_text())
    options = json.loads((half / "training_options.json").read_text())
    options["model"]["resolution"] = 64
    (tmp_path / "sized.json").write_text(json.dumps(options))
    del options["model"]["resolution"]
    (tmp_path / "unsized.json").write_text(json.dumps(options))
    places = {
        "DATA": data,
        "HALF": half,
        "SNAPSHOT": snapshot_in(half),
        "CONFIG": tmp_path / "c.json",
        "SIZED": tmp_path / "sized.json",
        "UNSIZED": tmp_path / "unsized.json",
        "EMPTY": tmp_path / "empty",
        "RUNS": half.parent,
        "GONE": tmp_path / "run",
        "OTHER": write_dataset(tmp_path / "other.zip", 20),
    }
    return lambda text: places.get(text, text)


@pytest.mark.parametrize(("words", "wrong", "mends"), ADVICE, ids=[row[0] for row in ADVICE])
def test_what_a_refusal_says_is_taken(
    words: str,
    wrong: tuple[str, ...],
    mends: list[tuple[str, ...]],
    files: Callable[[str], str | Path],
) -> None:
    runs_at_once = "RUN" in wrong
    arguments = [files(text) for text in wrong if text != "RUN"]
    refused = train_here(*arguments, *(() if runs_at_once else ("--dry-run",)))
    assert words in refused.err
    refused.assert_refused(refused.status, words)
    for mend in mends:
        train_here(*map(files, mend), "--dry-run").assert_done()


def test_few_pictures_are_told(data: Path, half: Path, tmp_path: Path) -> None:
    few = "Few pictures (16): the discriminator will learn them by heart"
    assert few in train_here("--data", data, *TINY_OPTIONS, "--dry-run").err
    for mend in ((*TINY_OPTIONS, "--aug", "ada"), ("--init-from", snapshot_in(half))):
        assert "Few pictures" not in train_here("--data", data, *mend, "--dry-run").err
    many = tmp_path / "many.zip"
    write_dataset(many, FEW_PICTURES // 2)
    told = train_here("--data", many, *TINY_OPTIONS, "--dry-run").err
    assert f"Few pictures ({FEW_PICTURES // 2})" in told
    assert "Few pictures" not in train_here("--data", many, *TINY_OPTIONS, "--mirror", "-n").err


def test_the_size_that_weights_want(half: Path, tmp_path: Path) -> None:
    """Weights of 64 pixels and data of 32: as large as the weights, or larger, will do."""
    large = load_checkpoint(snapshot_in(half))
    large.config.model.resolution = 64
    save_checkpoint(tmp_path / "large.pkl", large)
    small = write_dataset(tmp_path / "small.zip")
    options = ("--init-from", tmp_path / "large.pkl", "--dry-run")
    train_here("--data", small, *options).assert_refused(1, "64 pixels, the data have 32; resize")
    for size in ("64", "128"):
        dest = tmp_path / f"{size}.zip"
        convert = ("convert", "--source", small, "--dest", dest, "--resolution", size)
        call(dataset_tool.main, *convert, "--workers", "1").assert_done()
        refused = train_here("--data", dest, *options)
        assert "resize the data" not in refused.err


def test_rendering_that_is_thrown_away() -> None:
    config = tiny_config("superresolution.input_resolution=16", "rendering.resolution=32")
    note = rendering_note(config)
    assert note is not None
    assert "--nrr-final 16, or --set superresolution.input_resolution=32" in note
    for mend in ("rendering.resolution=16", "superresolution.input_resolution=32"):
        mended = tiny_config("superresolution.input_resolution=16", "rendering.resolution=32")
        set_option(mended, mend)
        assert rendering_note(mended) is None


def test_devices_that_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = {"is_available": True, "count": 2}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda["is_available"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda["count"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match="leave --procs out"):
        choose_devices("auto", 2, 3)
    assert choose_devices("auto", 2, None).processes == 2
    with pytest.raises(ValueError, match="only one process can use --device mps"):
        choose_devices("mps", 0, 2)
    assert choose_devices("mps", 0, 1).device == "mps"
    cuda |= {"is_available": False, "count": 0}
    with pytest.raises(ValueError, match="--gpus 0"):
        choose_devices("auto", 8, None)
    assert choose_devices("auto", 0, None).device == "cpu"
    with pytest.raises(ValueError, match="--device cpu"):
        choose_devices("cuda", None, None)
    assert choose_devices("cpu", None, None).device == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device mps: not available here; use --device cpu"):
        choose_devices("mps", None, None)


def test_devices_that_are_advised_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(here: int) -> None:
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, str(here))
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", "29500")

    gpus = 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    started(2)
    with pytest.raises(ValueError, match="leave --procs out, or give torchrun another"):
        choose_devices("cpu", None, 3)
    assert choose_devices("cpu", None, None).processes == 2
    with pytest.raises(ValueError, match="started without torchrun"):
        choose_devices("mps", None, None)
    with pytest.raises(ValueError, match="--nproc-per-node 1"):
        choose_devices("cuda", None, None)
    started(1)
    assert choose_devices("cuda", None, None).device == "cuda"
    gpus = 0
    with pytest.raises(ValueError, match="use --gpus 0 to train on the CPU"):
        choose_devices("cuda", None, None)
    assert choose_devices("auto", 0, None).device == "cpu"


def test_another_outdir_where_numbers_are_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        (tmp_path / "full" / f"{number:05d}-x").mkdir(parents=True)
    monkeypatch.setattr(launch, "_next_number", lambda _: 0)
    with pytest.raises(UserError, match="choose another --outdir"):
        launch.new_run_dir(tmp_path / "full", "x")
    assert launch.new_run_dir(tmp_path / "other", "x").exists()


def test_a_larger_kimg_goes_on(half_copy: Path) -> None:
    ended = train_here("--resume", half_copy, "--kimg", kimg(3)).assert_done()
    assert "a larger --kimg goes on" in ended.out
    train_here("--resume", half_copy, "--kimg", kimg(4)).assert_done()
    assert load_checkpoint(snapshot_in(half_copy)).progress["images"] == 4 * BATCH


def test_half_a_state_starts_a_new_run(half_copy: Path, data: Path) -> None:
    path = snapshot_in(half_copy)
    state = load_checkpoint(path)
    state.optimizers = {}
    save_checkpoint(path, state)
    refused = train_here("--resume", half_copy, "--kimg", "1")
    refused.assert_refused(1, "start a new run from its weights with --init-from")
    train_here("--data", data, "--init-from", path, "--dry-run").assert_done()


def test_gradients_that_are_not_finite(
    half_copy: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    """The checkpoint that is kept starts another run, with a larger gamma or a smaller rate."""
    monkeypatch.setattr(trainer_module, "MAX_BAD_STEPS", 1)
    break_loss(monkeypatch, "density_regularisation")
    kept = snapshot_in(half_copy)
    ended = train_here("--resume", half_copy, "--kimg", kimg(500))
    ended.assert_refused(1, "the last good checkpoint is kept", "--init-from")
    monkeypatch.undo()
    for options in (("--gamma", "9"), ("--set", "training.lr_generator=0.001")):
        train_here("--data", data, "--init-from", kept, *options, "--dry-run").assert_done()


def test_memory_of_a_gpu_that_runs_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = tiny_config("data.workers=0")
    config.data.path = str(data)
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match="smaller --batch-gpu, or a smaller --nrr-final"):
        run_training(config, RunOptions(tmp_path, torch.device("cpu")))
    monkeypatch.undo()
    for options in (("--batch-gpu", "1"), ("--nrr-final", "8")):
        train_here("--data", data, *TINY_OPTIONS, *options, "--dry-run").assert_done()
