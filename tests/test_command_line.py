"""The contract of the command lines: their names, options and defaults. A change here breaks other
people's scripts.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import app
import calc_metrics
import dataset_tool
import export
import gen_samples
import gen_videos
import invert
import train
import viewer
from cli.program import Program
from open_eg3d import __version__
from tests.tiny import ROOT, call, environment, finish, start
from training.checkpoints import show

TRAIN = """
--alpha --aug --batch --batch-gpu --cfg --compile --config --data --detector --detector-weights
--deterministic --device --dry-run --freeze-d --gamma --gen-pose-cond --gpus --help
--identity-model --init-from --json
--keep --keep-every --kimg --log --lpips-weights --max-broken --metrics --minutes --mirror
--no-compile
--no-deterministic
--no-gen-pose-cond --no-mirror --nrr-fade-kimg --nrr-final --nrr-initial --outdir --p --pose-model
--poses --precision --procs --rebalance --resume --seed --set --sizes --snap --target --tick
--version --workers
"""
GEN_SAMPLES = """
--device --edit --help --images --latents --network --nrr --no-images --outdir --pitch --precision
--remove-background --rows --seeds
--shape-faces --shape-level --shape-res --shapes --texture --transparent --trunc --trunc-cutoff
--version
--views
"""
GEN_VIDEOS = """
--camera --compile --device --edit --formats --fps --frames --grid --help --interpolate --latents
--network --nrr --outdir
--pitch --pitch-swing --precision --ray-samples --remove-background --seeds --show --size
--transparent --trunc --trunc-cutoff
--version --yaw-swing
"""
HEADS = (
    "--alpha --background --count --depth --dest --help --overwrite --resolution --seed"
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
    """The left columns of the lists of options."""
    return "\n".join(
        re.split(r"\s{2,}", line.strip())[0]
        for line in help_text.splitlines()
        if re.match(r"  -", line)
    )


PROGRAMS: list[Program] = [
    calc_metrics.main, export.main, gen_samples.main, gen_videos.main, invert.main, train.main,
    viewer.main,
]  # fmt: skip


@pytest.mark.parametrize("command", PROGRAMS, ids=lambda command: command.callback.__module__)
def test_help_stands_by_purpose(command: Program) -> None:
    """Each option once, under the heading that names it; the rest under the last one."""
    help_text = call(command, "--help").assert_done().out
    sections = dict(re.findall(r"^(\S[^\n]*):\n((?:  .*\n|\n)+)", help_text, re.MULTILINE))
    assert list(sections) == [*command.purposes, "Other options"]
    names = {param.name for param in command.params}
    assert {name for some in command.purposes.values() for name in some} <= names
    listed = [line.split()[0] for line in options_of("".join(sections.values())).splitlines()]
    assert (
        len(listed)
        == len(set(listed))
        == 1 + sum(isinstance(param, click.Option) for param in command.params)
    )
    assert options_of(sections["Other options"]).splitlines() == ["--version", "-h, --help"]


@pytest.mark.parametrize("command", [*PROGRAMS, dataset_tool.main])
def test_version(command: click.Command) -> None:
    assert call(command, "--version").assert_done().out == f"open-eg3d, version {__version__}\n"


def options(command: click.Command) -> Iterator[click.Option]:
    """Those of a command and of the commands in it."""
    for one in getattr(command, "commands", {}).values():
        yield from options(one)
    yield from (param for param in command.params if isinstance(param, click.Option))


EVERY_OPTION = [
    option
    for command in (*PROGRAMS, dataset_tool.main, app.main, show.main)
    for option in options(command)
]


@pytest.mark.parametrize("name", ["--network", "--device", "--estimator"])
def test_the_same_option_reads_the_same_everywhere(name: str) -> None:
    told = {
        ((option.help or "").partition("  [")[0], option.metavar)
        for option in EVERY_OPTION
        if name in option.opts
    }
    assert len(told) == 1, told


def test_defaults_stand_apart() -> None:
    """Behind the sentence, in click's own form."""
    for option in EVERY_OPTION:
        text = option.help or ""
        assert "[default" not in text or re.search(r"\S  \[default: [^]]+\]$", text), option.opts
        assert text.partition("  [default")[0].endswith((".", ")")), option.opts


def test_the_package_lists_the_commands() -> None:
    done = run(sys.executable, "-m", "open_eg3d")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert re.findall(r"^  (eg3d-[a-z-]+)  +\S", done, re.MULTILINE) == list(scripts)
    assert re.search(r"eg3d-export +Write the generator alone", done)


def test_shells_complete_options() -> None:
    """click's own completion, as docs/sharing.md turns it on."""
    asked = {"_EG3D_EXPORT_COMPLETE": "bash_complete", "COMP_WORDS": "eg3d-export --for"}
    program = Path(sys.executable).with_name("eg3d-export")
    assert "plain,--format" in run(program, COMP_CWORD="1", **asked)


def run(*command: str | Path, **variables: str) -> str:
    """What a program prints."""
    return subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=True
    ).stdout


CHOICES = {
    "aug": ["noaug", "ada", "fixed"],
    "cfg": [
        "auto",
        "ffhq",
        "afhq",
        "shapenet",
        "heads",
        "heads128-strict",
        "ffhq256-strict",
    ],
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
    assert set(option.type.choices) == {"none", "ply", "obj", "glb", "stl", "mrc"}


@pytest.mark.parametrize(
    "script", ["train.py", "gen_samples.py", "gen_videos.py", "dataset_tool.py"]
)
def test_help_of_every_script(script: str) -> None:
    ended = finish(start(script, "--help")).assert_done()
    assert ended.out.startswith("Usage: ")
    assert ended.err == ""
