"""Training from a program or a notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools.faces.angles import open_pose_estimator
from dnnlib.console import UserError
from media.pictures.snapshots import save_pictures
from open_eg3d.measuring import metrics_of_run
from training.config.presets import PRESETS, PresetName, Sizes
from training.config.settings import Config
from training.data.shards import data_name, open_images
from training.run import settings as run_settings
from training.run.launch import (
    DeviceName,
    Job,
    Launch,
    choose_devices,
    launch_training,
    new_run_dir,
)
from training.run.saving import snapshots_in


def new_config(
    data: str | os.PathLike[str],
    preset: PresetName = "auto",
    *,
    sizes: Sizes | None = None,
    init_from: str | None = None,
    device: DeviceName = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Settings of a new run, as train.py makes them; all fields may be changed before `train`. What
    was chosen from the data is printed.

    Args:
        data: ZIP or folder of pictures with camera labels (docs/own-data.md).
        preset: auto, ffhq, afhq, shapenet or heads. sizes: laptop or published; None = what suits
            device and data.
        init_from: File or address of a model to start from.
        settings: Values by `section.field`, as for `train.py --set`: {"training.kimg": 100}.

    Raises:
        UserError: for data that cannot be read, and settings that do not exist or fit.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    assignments = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    request = run_settings.RunRequest(preset, sizes, init_from, assignments)
    kind = _launch(device, None).device
    dataset = open_images(data, background=run_settings.asked_background(assignments))
    config, notes = run_settings.new_config(request, run_settings.RunData.of(dataset), kind)
    print(*notes, sep="\n")
    return config


def train(
    config: Config,
    outdir: str | os.PathLike[str] = "training-runs",
    *,
    minutes: float | None = None,
    device: DeviceName = "auto",
    processes: int | None = None,
) -> Path:
    """Train a new run in a folder of its own below `outdir`, to its end or the time limit; returns
    the last snapshot. Ctrl-C (a notebook's stop button) saves and ends it.

    `train.py --resume FOLDER` goes on with it.

    Args:
        config: Of `new_config`.
        minutes: After which to save and stop; None = no limit.
        processes: That share the work; None = all GPUs, on the CPU one.

    Raises:
        UserError: for settings that make no sense, data that cannot be read, a full disk.
    """
    launch = _launch(device, processes)
    run_settings.check_run(config, launch.processes)
    measured = (metrics_of_run(config, open_pose_estimator),) if config.snapshot.metrics else ()
    name = f"{data_name(config.data.path)}-{config.preset}-batch{config.training.batch}"
    job = Job(
        config,
        new_run_dir(Path(outdir), name),
        time_limit=None if minutes is None else 60 * minutes,
        callbacks=(save_pictures,),
        metrics=measured,
    )
    launch_training(job, launch)
    return snapshots_in(job.run_dir)[-1]


def _launch(device: DeviceName, processes: int | None) -> Launch:
    try:
        return choose_devices(device, None, processes)
    except ValueError as error:
        raise UserError(str(error)) from error
