"""How well face cameras are estimated, on heads rendered with known ones: python -m
benchmarks.faces [--json FILE].

With --fit FILE it instead measures mediapipe's average face on such heads, which is how
data_tools/faces/canonical.csv was made: python -m benchmarks.faces --count 160 --seed 1000 --fit
data_tools/faces/canonical.csv
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from benchmarks.timing import json_option, resolution_option, show
from data_tools.faces.estimators import Estimator
from data_tools.faces.mediapipe_process import MeshProcess, mediapipe_estimator
from data_tools.faces.pose import DEPTH_GAIN, face_label
from data_tools.heads.dataset import HeadsConfig, generate_heads
from data_tools.sources.base import Array
from dnnlib.console import HELP, UserError, progress, run_cli
from training.cameras import look_at_pose, orbit_angles, unpack_label
from training.data.dataset import ImageDataset

HEAD_MIDDLE = (0.0, -0.05, 0.215)  # of a face on the rendered heads, in their world
LEFT_IRIS, RIGHT_IRIS = 468, 473  # of mediapipe's mesh; left in the picture
# Where the published faces have their eyes (Deng et al., "Accurate 3D face reconstruction ...",
# 2019): decimetres from the middle.
EYE_DISTANCE, EYE_HEIGHT, EYE_DEPTH = 0.62, 0.29, 0.13


def heads(count: int, resolution: int, seed: int) -> tuple[list[np.ndarray], torch.Tensor]:
    """Pictures (resolution, resolution, 3) of as many heads, and their labels (count, 25)."""
    with tempfile.TemporaryDirectory() as folder:
        config = HeadsConfig(count, resolution, seed, views_per_identity=1, workers=1)
        data = ImageDataset(generate_heads(Path(folder) / "heads.zip", config))
        images, labels = data.read(range(count))
    return list(images.permute(0, 2, 3, 1).numpy()), labels


def errors(
    pictures: list[np.ndarray], labels: torch.Tensor, estimate: Estimator
) -> tuple[Array, Array]:
    """True angles (M, 2), degrees of yaw and pitch, and errors (M, 2) of the estimated ones; NaN
    where no face was found.
    """
    found = np.full((len(pictures), 2), np.nan)
    for index, picture in enumerate(progress(pictures, "Estimating", unit="img")):
        poses = estimate(picture)
        if poses:
            camera = torch.from_numpy(face_label(max(poses, key=lambda pose: pose.scale)))
            found[index] = [
                float(angle.rad2deg()) for angle in orbit_angles(unpack_label(camera)[0])[:2]
            ]
    true = torch.stack(orbit_angles(unpack_label(labels.double())[0])[:2], dim=1).rad2deg().numpy()
    return true, found - true


def accuracy(true: Array, error: Array) -> list[dict[str, Any]]:
    """Rows of the table; `slope` is how much the estimate grows for each degree of the truth."""
    rows = []
    for column, angle in enumerate(("yaw", "pitch")):
        good = ~np.isnan(error[:, column])
        wrong, truth = error[good, column], true[good, column]
        row = {
            "angle": angle,
            "heads": len(error),
            "found": int(good.sum()),
            "mean |error|": float(np.abs(wrong).mean()),
        }
        slope = 1 + float(np.polyfit(truth, wrong, 1)[0])
        rows.append(
            {
                **row,
                "bias": float(wrong.mean()),
                "slope": slope,
                "95 %": float(np.quantile(np.abs(wrong), 0.95)),
            }
        )
    return rows


def fit_canonical(pictures: list[np.ndarray], labels: torch.Tensor) -> Array:
    """Mediapipe's mean face (478, 3), symmetric, in the axes and units of
    `data_tools.faces.pose`.
    """
    middle = torch.tensor(HEAD_MIDDLE, dtype=torch.float64)
    cameras = look_at_pose(unpack_label(labels.double())[0][:, :3, 3], middle)[:, :3, :3].numpy()
    process, shapes = MeshProcess(), []
    try:
        for picture, rotation in zip(pictures, cameras, strict=True):
            for points, _ in process.landmarks(picture)[:1]:
                shape = (points - points.mean(0)) * (1, 1, DEPTH_GAIN) @ rotation.T
                shapes.append(shape / np.sqrt((shape**2).sum()))
    finally:
        process.close()
    mean = np.mean(shapes, axis=0)
    mirrored = mean * (-1, 1, 1)
    mean = (mean + mirrored[linear_sum_assignment(cdist(mean, mirrored))[1]]) / 2
    mean *= EYE_DISTANCE / (mean[RIGHT_IRIS, 0] - mean[LEFT_IRIS, 0])
    return np.asarray(mean - mean[LEFT_IRIS] * (0, 1, 1) + np.array([0, EYE_HEIGHT, EYE_DEPTH]))


@click.command(context_settings=HELP)
@click.option("--count", type=click.IntRange(2), default=160, help="Heads.")
@resolution_option(256, 128, 256, 512)
@click.option(
    "--seed", type=click.IntRange(0), default=7, help="Of the heads; 1000 were those fitted to."
)
@click.option(
    "--fit",
    "fit_path",
    type=click.Path(path_type=Path),
    help="Write the average face there instead of measuring.",
)
@json_option
def main(
    count: int, resolution: str, seed: int, fit_path: Path | None, json_path: Path | None
) -> None:
    """Estimate the cameras of rendered heads with mediapipe and compare yaw and pitch, degrees,
    with the truth.
    """
    pictures, labels = heads(count, int(resolution), seed)
    if fit_path:
        np.savetxt(fit_path, fit_canonical(pictures, labels), fmt="%.4f", delimiter=",")
        return
    with mediapipe_estimator() as estimate:
        true, error = errors(pictures, labels, estimate)
    if np.isnan(error).all():
        raise UserError("no face was found in any picture")
    show(f"{count} heads of {resolution} pixels, seed {seed}", accuracy(true, error), json_path)


if __name__ == "__main__":
    run_cli(main)
