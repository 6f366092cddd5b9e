"""A page of the viewer without a browser: it speaks the library's protocol, correctly or not."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec.msgpack
import numpy as np
import viser
import zstandard
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

T = TypeVar("T")
SECONDS = 180.0


class RawPage:
    """A connection to the viewer at `address`, which collects what it is sent."""

    def __init__(self, address: str, **options: Any) -> None:
        protocol = Subprotocol(f"viser-v{viser.__version__}")
        self.socket = connect(
            address.replace("http", "ws"),
            subprotocols=[protocol],
            max_size=None,
            compression=None,
            **options,
        )
        self.controls: dict[str, dict[str, Any]] = {}  # by label, the newest
        self.status = ""
        self.pictures: list[np.ndarray] = []
        self.formats: list[str] = []
        self.files: dict[str, bytes] = {}
        self.whole: set[str] = set()  # names of files that have come to their end
        self._names: dict[str, tuple[str, int]] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for frame in self.socket:
                assert isinstance(frame, bytes)
                for message, buffers in _messages(frame):
                    self._note(message, buffers)
        except ConnectionClosed:
            pass

    def _note(self, message: dict[str, Any], buffers: list[bytes]) -> None:
        kind = message["type"]
        if "props" in message and message["props"].get("label"):
            self.controls[message["props"]["label"]] = message
        elif kind == "GuiMarkdownMessage":
            self.status = message["props"]["_markdown"]
        elif kind == "GuiUpdateMessage" and "_markdown" in message["updates"]:
            self.status = message["updates"]["_markdown"]
        elif kind == "BackgroundImageMessage" and message["rgb_data"] is not None:
            self.formats.append(message["format"])
            self.pictures.append(
                np.asarray(
                    Image.open(io.BytesIO(_data(message["rgb_data"], buffers))).convert("RGB")
                )
            )
        elif kind == "FileTransferStartDownload":
            self._names[message["transfer_uuid"]] = (message["filename"], message["size_bytes"])
            self.files[message["filename"]] = b""
        elif kind == "FileTransferPart":
            name, size = self._names[message["transfer_uuid"]]
            self.files[name] += _data(message["content"], buffers)
            if len(self.files[name]) == size:
                self.whole.add(name)

    def send(self, kind: str, **fields: Any) -> None:
        """One message."""
        self.socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def look(
        self,
        position: Any = (0.0, 0.0, 2.7),
        look_at: Any = (0.0, 0.0, 0.0),
        width: Any = 400,
        height: Any = 400,
    ) -> None:
        """Tell where the camera is. The first time lets the page in."""
        camera = {
            "wxyz": (1.0, 0.0, 0.0, 0.0),
            "fov": 1.0,
            "near": 0.01,
            "far": 1000.0,
            "up_direction": (0.0, 1.0, 0.0),
        }
        self.send(
            "ViewerCameraMessage",
            position=position,
            look_at=look_at,
            image_width=width,
            image_height=height,
            **camera,
        )

    def set(self, label: str, value: Any) -> None:
        """Move a control."""
        self.update(label, {"value": value})

    def update(self, label: str, updates: dict[str, Any]) -> None:
        """Change anything about a control."""
        self.send("GuiUpdateMessage", uuid=self.controls[label]["uuid"], updates=updates)

    def wait_for(self, what: Callable[[], T]) -> T:
        """The value of `what` as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := what()):
            assert time.monotonic() < end, f"waited in vain; status {self.status!r}"
            time.sleep(0.01)
        return value

    def full_picture(self, after: Callable[[], None]) -> np.ndarray:
        """The full picture that follows an action."""
        count = len(self.pictures)
        after()
        self.wait_for(
            lambda: "png" in self.formats[count:] and len(self.pictures) == len(self.formats)
        )
        return self.pictures[count + self.formats[count:].index("png")]

    def enter(self) -> np.ndarray:
        """Look from the front, and wait for the first full picture and all controls."""
        picture = self.full_picture(self.look)
        self.wait_for(lambda: "Mesh" in self.controls)
        return picture

    def close(self) -> None:
        """Leave, politely."""
        self.socket.close()
        self._thread.join()


def _messages(frame: bytes) -> list[tuple[dict[str, Any], list[bytes]]]:
    packed = int.from_bytes(frame[8:16], "little")
    content = msgspec.msgpack.decode(
        zstandard.ZstdDecompressor().decompress(frame[16 : 16 + packed])
    )
    buffers, start = [], 16 + packed
    for length in content["binaryBufferLengths"]:
        start += -start % 8
        buffers.append(frame[start : start + length])
        start += length
    return [(message, buffers) for message in content["messages"]]


def _data(value: Any, buffers: list[bytes]) -> bytes:
    return buffers[value["__binary_index"]] if isinstance(value, dict) else value
