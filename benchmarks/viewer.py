"""Frames a second of the viewer, from a camera that moves in a page to the picture that comes back:
python -m benchmarks.viewer.

The page is a bare connection that decodes nothing, in a process of its own, so that the viewer has
the threads it would have with a browser on another machine.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import click
import msgspec.msgpack
import viser
import zstandard
from websockets.sync.client import connect
from websockets.sync.connection import Connection as Socket
from websockets.typing import Subprotocol

from benchmarks.timing import median_seconds, repeats_option, show
from dnnlib.console import HELP, run_cli
from media.viewer.checkpoints import CheckpointFolder
from media.viewer.server import run_viewer
from media.viewer.view_renderer import KINDS, Latents, View, ViewRenderer
from open_eg3d import load_generator

SENT_A_SECOND = 60  # cameras, as from a mouse
SHIPPED = Path(__file__).parents[1] / "models" / "heads64.pkl"


def turn(socket: Socket, angle: float) -> None:
    """Tell the viewer that the camera stands at this angle."""
    camera = {
        "wxyz": (1.0, 0.0, 0.0, 0.0),
        "fov": 1.0,
        "near": 0.01,
        "far": 1000.0,
        "up_direction": (0.0, 1.0, 0.0),
    }
    window = {"image_width": 900, "image_height": 700, "look_at": (0.0, 0.0, 0.0)}
    position = (2.7 * math.sin(angle), 0.0, 2.7 * math.cos(angle))
    socket.send(
        msgspec.msgpack.encode(
            {"type": "ViewerCameraMessage", "position": position, **camera, **window}
        )
    )


def pictures_in(frame: bytes | str) -> int:
    """How many pictures a message of the viewer's brings."""
    assert isinstance(frame, bytes)
    packed = int.from_bytes(frame[8:16], "little")
    return (
        zstandard.ZstdDecompressor()
        .decompress(frame[16 : 16 + packed])
        .count(b"BackgroundImageMessage")
    )


def visit(address: str, seconds: float, answer: Connection) -> None:
    """Turn a head for so long; answers with the pictures that came in a second."""
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    with connect(
        address.replace("http", "ws"), subprotocols=[protocol], max_size=None, compression=None
    ) as socket:
        turn(socket, 0.0)
        socket.recv()
        count, start, sent = 0, 0.0, 0
        begin = time.perf_counter() + 2  # the first pictures tell the viewer how fast it is
        while (now := time.perf_counter()) < begin + seconds:
            if start == 0.0 and now >= begin:
                start, count = now, 0
            sent += 1
            turn(socket, 0.7 * math.sin(now))
            try:
                while True:
                    count += pictures_in(
                        socket.recv(timeout=max(0.0, now + 1 / SENT_A_SECOND - time.perf_counter()))
                    )
            except TimeoutError:
                continue
        answer.send(count / (time.perf_counter() - start))


def frames_a_second(network: Path, seconds: float, sessions: int) -> list[float]:
    """Measure the pictures per second of each of some sessions that turn a head."""
    folder = CheckpointFolder(None, load_generator)
    context = multiprocessing.get_context("spawn")
    with run_viewer(load_generator(network), network.name, folder, port=0) as viewer:
        pipes = [context.Pipe(duplex=False) for _ in range(sessions)]
        pages = [
            context.Process(target=visit, args=(viewer.address, seconds, sender))
            for _, sender in pipes
        ]
        for page in pages:
            page.start()
        found = [receiver.recv() for receiver, _ in pipes]
        for page in pages:
            page.join()
    return found


@click.command(context_settings=HELP)
@click.option("--network", type=click.Path(exists=True, path_type=Path), default=SHIPPED)
@click.option(
    "--seconds", type=click.FloatRange(1), default=10.0, help="How long a head is turned."
)
@repeats_option(20)
def main(network: Path, seconds: float, repeats: int) -> None:
    """Time pictures alone, then whole visits."""
    renderer = ViewRenderer(load_generator(network))
    cases = {
        f"{kind}, {pixels} pixels": lambda kind=kind, pixels=pixels: renderer.render(
            Latents(), View(kind, yaw=0.3, resolution=pixels)
        )
        for kind in KINDS
        for pixels in (renderer.resolution, 2 * renderer.resolution)
    }
    rows = [
        {"picture": name, "ms": 1000 * taken, "a second": 1 / taken}
        for name, taken in median_seconds(cases, repeats).items()
    ]
    show("Pictures", rows)
    visits = {sessions: frames_a_second(network, seconds, sessions) for sessions in (1, 2)}
    show(
        "Visits",
        [{"sessions": n, "frames per second each": sum(rates) / n} for n, rates in visits.items()],
    )


if __name__ == "__main__":
    run_cli(main)
