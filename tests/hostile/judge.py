"""Opens hostile files with the real loaders, each in a process of its own under limits: python -m
tests.hostile.judge JOBS RESULTS.

JOBS is a JSON list of [loader, path]; RESULTS becomes a JSON list of what came of each. A process
is forked per file, after everything is imported, so that a file takes milliseconds and what it does
is measured apart from all others.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_tools.pictures import PictureJob, PictureOptions, convert_picture
from data_tools.sources.detect import read_source
from dnnlib.console import UserError, one_line
from open_eg3d import load_generator
from tests.hostile.archives import good_checkpoint, good_folder
from training.cameras import cameras_of
from training.checkpoints.checkpoint import load_checkpoint
from training.data.dataset import ImageDataset
from training.data.pictures import open_picture

CPU_SECONDS = 10
WALL_SECONDS = 60  # for a file that keeps its reader waiting
MEMORY_BYTES = 2 << 30
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
    "shutil.rmtree",
    "exec",
)
OWN_CODE = (str(Path(__file__).parents[2]), os.path.dirname(os.__file__), "<string>", "<frozen")


def open_weights(path: Path) -> None:
    """As every command line that takes --network."""
    generator = load_generator(path)
    cameras_of(generator).frontal_label()


def open_checkpoint(path: Path) -> None:
    """As resuming."""
    load_checkpoint(path)


def open_data(path: Path) -> None:
    """As training: check, then decode every picture."""
    dataset = ImageDataset(path)
    for index in range(len(dataset)):
        dataset[index]


def open_source(path: Path) -> None:
    """As `dataset_tool convert`, one picture after the other."""
    source = read_source(path)
    for index, frame in enumerate(source.frames):
        result = convert_picture(
            (source.files, PictureOptions(64, background=(255, 255, 255))),
            PictureJob(index, frame.name, frame.lens),
        )
        if isinstance(result, UserError):
            raise result


LOADERS: dict[str, Callable[[Path], None]] = {
    "weights": open_weights,
    "checkpoint": open_checkpoint,
    "data": open_data,
    "source": open_source,
}


def judge(loader: str, path: Path) -> dict[str, Any]:
    """What comes of one file: outcome, message, what was run, processor seconds and bytes of
    memory.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.write(writer, json.dumps(_open(loader, path)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    _, status, usage = os.wait4(child, 0)
    report = (
        json.loads(told)
        if told
        else {
            "outcome": f"killed by signal {os.waitstatus_to_exitcode(status)}",
            "message": "",
            "ran": [],
        }
    )
    return {**report, "seconds": usage.ru_utime + usage.ru_stime, "bytes": usage.ru_maxrss << 10}


def _open(loader: str, path: Path) -> dict[str, Any]:
    ran: list[str] = []
    sys.addaudithook(
        lambda event, arguments: ran.append(event) if _is_suspect(event, arguments) else None
    )
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.alarm(WALL_SECONDS)
    limit = _address_space() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        LOADERS[loader](path)
        outcome, message = "read", ""
    except UserError as error:
        outcome, message = "refused", one_line(str(error))
    except BaseException:
        outcome, message = "crashed", traceback.format_exc()[-2000:]
    return {"outcome": outcome, "message": message, "ran": ran}


def _is_suspect(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether something is started, connected, deleted, or code run that stands in no file of ours
    or Python's.
    """
    if event != "exec":
        return event in WATCHED
    return not str(getattr(arguments[0], "co_filename", "")).startswith(OWN_CODE)


def _address_space() -> int:
    """Bytes of address space this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main(jobs: Path, results: Path) -> None:
    """Judge all files of a list."""
    torch.set_num_threads(1)
    # what libraries import on first use is not the files' doing
    with tempfile.TemporaryDirectory() as folder:
        for loader, path in (
            ("checkpoint", good_checkpoint(Path(folder) / "a.pkl")),
            ("weights", good_folder(Path(folder) / "b")),
        ):
            LOADERS[loader](path)
    with contextlib.suppress(UserError):
        open_picture(b"no picture", "first use")  # looks through all of Pillow's formats
    reports = [judge(loader, Path(path)) for loader, path in json.loads(jobs.read_text())]
    results.write_text(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
