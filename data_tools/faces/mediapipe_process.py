"""Mediapipe as an estimator of face poses: its environment, and the process that runs in it.

Mediapipe wants an older numpy than this project, so it lives in a virtual environment of its own,
set up once by `set_up`. Release 0.10.21 is the last whose package holds its landmark models, so
nothing is downloaded but packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.faces.pose import FacePose, pose_from_mesh
from dnnlib.console import UserError
from dnnlib.files import cache_dir, make_dir, temporary_dir

MEDIAPIPE = "mediapipe==0.10.21"
# Of what mediapipe asks for, the parts that its face mesh imports; without a window system, and
# without 500 MB that are never used.
NEEDED = (
    "numpy<2",
    "absl-py",
    "attrs>=19.1",
    "flatbuffers>=2",
    "protobuf>=4.25.3,<5",
    "matplotlib",
    "opencv-contrib-python-headless<4.12",
)
OLDEST, NEWEST = (3, 9), (3, 12)  # Pythons that there are packages of mediapipe for
SETUP_COMMAND = "python dataset_tool.py faces --setup"
WORKER = Path(__file__).with_name("mediapipe_worker.py")
ANSWER_SECONDS = 120.0
MOST_DEATHS = 3  # in a row; then it is not the pictures' fault


class EstimatorDied(Exception):
    """The process ended or hung while it looked at a picture."""


def environment_dir() -> Path:
    """Folder of mediapipe's environment."""
    return cache_dir() / MEDIAPIPE.replace("==", "-")


def environment_python() -> Path:
    """Python of mediapipe's environment.

    Raises:
        UserError: if it has not been set up, with the command that does.
    """
    python = _python_in(environment_dir())
    if not python.exists():
        raise UserError(f"mediapipe, which finds the faces, is not set up; run: {SETUP_COMMAND}")
    return python


def _python_in(environment: Path) -> Path:
    return (
        environment / "Scripts" / "python.exe"
        if os.name == "nt"
        else environment / "bin" / "python"
    )


# --------------------------------------------------------------------------------------------------
# Setting up


def set_up() -> Path:
    """Make mediapipe's environment, or make it anew. It appears under its name only when a face
    mesh could be started in it.

    Returns:
        Its folder.

    Raises:
        UserError: if there is no Python for it, packages cannot be installed, or it does not run.
    """
    base, target = _base_python(), environment_dir()
    make_dir(target.parent)
    with temporary_dir(target.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        _run([base, "-m", "venv", str(fresh)], "cannot make a virtual environment")
        pip = [
            str(_python_in(fresh)),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        _run([*pip, *NEEDED], "cannot install mediapipe's packages")
        _run([*pip, "--no-deps", MEDIAPIPE], f"cannot install {MEDIAPIPE}")
        MeshProcess(_python_in(fresh)).close()
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)
    return target


def _base_python() -> str:
    """A Python that mediapipe has packages for, this one if possible."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            return found
    raise UserError(
        f"mediapipe needs Python 3.{OLDEST[1]} to 3.{NEWEST[1]}, and there is none on the PATH;"
        " install one"
    )


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"{failure}: {_last_line(done.stdout)}; check the connection and the disk, then try"
            " again"
        )


def _last_line(text: str) -> str:
    """The line of a log that says most: the last error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])[:300]


# --------------------------------------------------------------------------------------------------
# Running


class MeshProcess:
    """A running `mediapipe_worker.py`; one picture at a time."""

    def __init__(self, python: Path | None = None) -> None:
        """Start and wait until it is ready.

        Raises:
            UserError: if it is not set up or does not start.
        """
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed by close()
        command = [str(python or environment_python()), "-E", "-s", str(WORKER)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        try:
            self._answer()
        except EstimatorDied as death:
            self.close()
            raise UserError(
                f"mediapipe does not start ({death}); set it up anew: {SETUP_COMMAND}"
            ) from death
        except BaseException:
            self.close()
            raise

    def landmarks(
        self, picture: NDArray[np.uint8]
    ) -> list[tuple[NDArray[np.float64], float | None]]:
        """Landmarks (478, 3) in pixels of every face in a picture (H, W, 3), and the detector's
        score.

        Raises:
            EstimatorDied: if the process ends or does not answer; this object is of no use any
                more.
            ValueError: with what it says about a picture that it refuses.
        """
        assert self.process.stdin is not None
        height, width = picture.shape[:2]
        try:
            self.process.stdin.write(
                json.dumps({"width": width, "height": height}).encode() + b"\n"
            )
            self.process.stdin.write(np.ascontiguousarray(picture).tobytes())
            self.process.stdin.flush()
        except OSError as error:
            raise EstimatorDied(self._last_words()) from error
        answer = self._answer()
        if "error" in answer:
            raise ValueError(answer["error"])
        faces = [np.array(face, dtype=np.float64) for face in answer["faces"]]
        return list(zip(faces, answer["scores"], strict=True))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(ANSWER_SECONDS, self.process.kill)
        watchdog.start()
        try:
            return dict(json.loads(self.process.stdout.readline()))
        except ValueError as error:
            raise EstimatorDied(self._last_words()) from error
        finally:
            watchdog.cancel()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.log.seek(0)
        return f"exit status {self.process.poll()}: {_last_line(self.log.read())}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


class MediapipeEstimator:
    """Face poses by mediapipe's face mesh; starts its process at the first picture, and anew where
    one kills it.
    """

    def __init__(self) -> None:
        self._process: MeshProcess | None = None
        self._deaths = 0

    def __call__(self, picture: NDArray[np.uint8]) -> list[FacePose]:
        """Poses of the faces in a picture (H, W, 3).

        Raises:
            EstimatorDied: for a picture that killed the process.
            UserError: if the process cannot be started or dies on one picture after the other.
        """
        self._process = self._process or MeshProcess()
        try:
            found = self._process.landmarks(picture)
        except EstimatorDied as death:
            self.close()
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                raise UserError(
                    f"mediapipe died on {MOST_DEATHS} pictures in a row, the last time with"
                    f" {death}; set it up anew: {SETUP_COMMAND}"
                ) from death
            raise
        self._deaths = 0
        return [replace(pose_from_mesh(face), score=score) for face, score in found]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None


@contextlib.contextmanager
def mediapipe_estimator() -> Iterator[MediapipeEstimator]:
    """An estimator whose process ends with the block."""
    estimator = MediapipeEstimator()
    try:
        yield estimator
    finally:
        estimator.close()
