"""The contract of the command lines: their names, options and defaults. A change here breaks other
people's scripts.
"""

from __future__ import annotations

import re

import click
import pytest

import dataset_tool
import gen_samples
import gen_videos
import train
from tests.tiny import call, finish, start

TRAIN = """
--aug --batch --batch-gpu --cfg --compile --config --data --detector --detector-weights
--deterministic --device --dry-run --freeze-d --gamma --gen-pose-cond --gpus --help
--identity-model --init-from --json
--keep --keep-every --kimg --lpips-weights --max-broken --metrics --minutes --mirror --no-compile
--no-deterministic
--no-gen-pose-cond --no-mirror --nrr-fade-kimg --nrr-final --nrr-initial --outdir --p --pose-model
--precision --procs --rebalance --resume --seed --set --sizes --snap --target --tick --workers
"""
GEN_SAMPLES = """
--device --edit --help --images --latents --network --nrr --no-images --outdir --pitch --precision
--rows --seeds
--shape-faces --shape-level --shape-res --shapes --texture --trunc --trunc-cutoff --views
"""
GEN_VIDEOS = """
--camera --compile --device --edit --formats --fps --frames --grid --help --interpolate --latents
--network --nrr --outdir
--pitch --pitch-swing --precision --ray-samples --seeds --show --size --trunc --trunc-cutoff
--yaw-swing
"""
HEADS = (
    "--background --count --depth --dest --help --overwrite --resolution --seed"
    " --views-per-identity --workers"
)
COMMANDS = [
    (train.main, (), TRAIN),
    (gen_samples.main, (), GEN_SAMPLES),
    (gen_videos.main, (), GEN_VIDEOS),
    (dataset_tool.main, ("heads",), HEADS),
]


@pytest.mark.parametrize(
    ("command", "path", "expected"), COMMANDS, ids=["train", "gen_samples", "gen_videos", "heads"]
)
def test_option_names(command: click.Command, path: tuple[str, ...], expected: str) -> None:
    ended = call(command, *path, "--help").assert_done()
    names = re.findall(r"(?<![\w-])--[a-z][a-z-]*", options_of(ended.out))
    assert sorted(set(names)) == sorted(expected.split())


def options_of(help_text: str) -> str:
    """The left column of the list of options."""
    _, _, listed = help_text.partition("Options:")
    return "\n".join(
        re.split(r"\s{2,}", line.strip())[0]
        for line in listed.splitlines()
        if re.match(r"  -", line)
    )


CHOICES = {
    "aug": ["noaug", "ada", "fixed"],
    "cfg": ["auto", "ffhq", "afhq", "shapenet", "heads"],
    "device": ["auto", "cpu", "cuda", "mps"],
    "precision": ["fp32", "tf32", "bf16", "fp16"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_of_train(name: str) -> None:
    (option,) = [param for param in train.main.params if param.name == name]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == CHOICES[name]


def test_defaults_of_train() -> None:
    defaults = {
        param.name: param.default for param in train.main.params if isinstance(param, click.Option)
    }
    assert str(defaults["outdir"]) == "training-runs"
    assert defaults["metrics"] == "none"
    assert defaults["device"] == "auto"
    given = {"outdir", "metrics", "device", "dry_run", "overrides"}
    assert {
        name
        for name, value in defaults.items()
        if value not in (None, False, ()) and not is_unset(value)
    } <= given


def is_unset(value: object) -> bool:
    """Whether click says that an option has no default (older and newer versions do so in different
    ways).
    """
    return value is None or "UNSET" in repr(value)


def test_short_names() -> None:
    (dry_run,) = [param for param in train.main.params if param.name == "dry_run"]
    assert sorted(dry_run.opts) == ["--dry-run", "-n"]
    assert call(train.main, "-h").assert_done().out == call(train.main, "--help").out


def test_shapes_of_gen_samples() -> None:
    (option,) = [param for param in gen_samples.main.params if param.name == "shapes"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == {"none", "ply", "obj", "glb", "mrc"}


@pytest.mark.parametrize(
    "script", ["train.py", "gen_samples.py", "gen_videos.py", "dataset_tool.py"]
)
def test_help_of_every_script(script: str) -> None:
    ended = finish(start(script, "--help")).assert_done()
    assert ended.out.startswith("Usage: ")
    assert ended.err == ""
