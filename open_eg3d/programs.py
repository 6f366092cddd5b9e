"""Entry points of the installed package: `eg3d-train` is `python train.py`, and so on."""

from __future__ import annotations

import functools
import importlib
import sys

from dnnlib.startup import prepare_program
from open_eg3d import check_own


def run(name: str) -> None:
    """Run the command line of a top-level module, as `python NAME.py` does."""
    prepare_program("__main__")
    try:
        check_own(name, f"{name}.py")
    except ImportError as error:
        sys.exit(f"error: {error}")
    module = importlib.import_module(name)
    module.run_cli(module.main)


NAMES = (
    "train",
    "gen_samples",
    "gen_videos",
    "invert",
    "export",
    "viewer",
    "calc_metrics",
    "dataset_tool",
)
train, gen_samples, gen_videos, invert, export, viewer, calc_metrics, dataset_tool = (
    functools.partial(run, name) for name in NAMES
)
