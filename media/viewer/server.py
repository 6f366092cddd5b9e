"""The web server of the viewer: viser's, with a `ViewerSession` for every page that opens it."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import viser
from viser import _messages

from dnnlib.console import UserError
from media.viewer.checkpoints import CheckpointFolder
from media.viewer.session import ViewerSession
from training.networks.generator import Generator

MAX_SESSIONS = 16
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Viewer:
    """A running viewer.

    Args:
        name: What the generator is called in the page; one of the folder's names if it lies there.
    """

    def __init__(
        self, generator: Generator, name: str, folder: CheckpointFolder, host: str, port: int
    ) -> None:
        self.generator, self.name, self.folder, self.host = generator, name, folder, host
        self.sessions: dict[int, ViewerSession] = {}
        self._lock = threading.Lock()
        self.server = viser.ViserServer(host=host, port=port, label="open-eg3d", verbose=False)
        _forget_handlers(self.server._websock_server, keep=())
        self.server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="medium"
        )
        self.server.gui.main_panel.dock_right()
        self.server.scene.set_up_direction("+y")
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._forget)

    @property
    def address(self) -> str:
        """Where browsers find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server.get_port()}"

    def _welcome(self, client: viser.ClientHandle) -> None:
        try:
            self._let_in(client)
        except Exception as error:  # nonsense in place of a first camera
            print(
                f"warning: session {client.client_id} is turned away: {type(error).__name__}:"
                f" {error}",
                file=sys.stderr,
            )
            self._close(client)

    def _let_in(self, client: viser.ClientHandle) -> None:
        _guard(client)
        if not self._is_own_page(client):
            self._close(client)
            return
        with self._lock:
            if len(self.sessions) >= MAX_SESSIONS:
                client.gui.add_markdown("Too many sessions at the moment; come back later.")
                return
            self.sessions[client.client_id] = ViewerSession(
                client, self.folder, self.generator, self.name
            )
        # it left while its controls were made
        if client.client_id not in self.server.get_clients():
            self._forget(client)

    def _forget(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self.sessions.pop(client.client_id, None)
        if session is not None:
            session.leave()

    def _connection(self, client: viser.ClientHandle) -> Any:
        return self.server._websock_server._live_connections.get(client.client_id)

    def _is_own_page(self, client: viser.ClientHandle) -> bool:
        """Whether the page came from this server. Any page in the browser of somebody who runs a
        viewer could connect otherwise.
        """
        connection = self._connection(client)
        if connection is None:
            return False
        headers = connection.request.headers
        origin, host = headers.get("Origin"), headers.get("Host", "")
        if origin is None:
            return True  # a program, not a page
        is_local_name = host.rsplit(":", 1)[0] in LOCAL_NAMES or self.host not in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        return is_local_name and origin.split("://", 1)[-1] == host

    def _close(self, client: viser.ClientHandle) -> None:
        connection = self._connection(client)
        if connection is not None:
            asyncio.run_coroutine_threadsafe(
                connection.close(1008, "not this server's page"), connection.loop
            )

    def close(self) -> None:
        """End the server and all sessions' threads."""
        self.server.stop()
        with self._lock:
            sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.leave()


def _guard(client: viser.ClientHandle) -> None:
    """Of all that the library lets a page do, cameras and values of controls are left.

    Else a page could have files collected in memory, and set what belongs to a control besides its
    value.
    """
    connection, gui = client._websock_connection, client.gui
    _forget_handlers(connection, keep=(_messages.ViewerCameraMessage,))

    async def take_value(client_id: Any, message: _messages.GuiUpdateMessage) -> None:
        if set(message.updates) == {"value"}:
            await gui._handle_gui_updates(client_id, message)

    connection.register_handler(_messages.GuiUpdateMessage, take_value)


def _forget_handlers(connection: Any, keep: Sequence[type]) -> None:
    """The server's own among them is one that would open a tunnel to the Internet for whoever
    asks.
    """
    for kind in set(connection._incoming_handlers) - set(keep):
        connection.unregister_handler(kind)


def check_address(host: str, port: int) -> None:
    """The library tries the next thousand ports, and waits for ever where none can be had.

    Raises:
        UserError: if nothing can listen there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host"
        ) from error


@contextmanager
def run_viewer(
    generator: Generator,
    name: str,
    folder: CheckpointFolder,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> Iterator[Viewer]:
    """A viewer that serves until the block ends.

    Raises:
        UserError: if nothing can listen at that address.
    """
    check_address(host, port)
    # they print a traceback for every broken-off or nonsensical message
    for library in ("websockets", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    # they repeat what a page has sent, however long
    warnings.filterwarnings("ignore", module="viser")
    # to a page that left a moment ago
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    viewer = Viewer(generator, name, folder, host, port)
    try:
        yield viewer
    finally:
        viewer.close()
