"""The web server of the viewer: viser's, with a `ViewerSession` for every page that opens it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import viser

from media.viewer.checkpoints import CheckpointFolder
from media.viewer.gateway import Gateway
from media.viewer.session import ViewerSession
from media.viewer.uploads import Inverter
from training.networks.generator import Generator

MAX_SESSIONS = 16


class LocalServer(viser.ViserServer):
    """The library's server on this machine alone, without its tunnel to the Internet."""

    def __init__(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # its address is not the one to open
            super().__init__(host="127.0.0.1", port=0, label="open-eg3d", verbose=False)
        self.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="medium"
        )
        self.gui.main_panel.dock_right()
        self.scene.set_up_direction("+y")

    def request_share_url(self, verbose: bool = True) -> None:
        """Open no tunnel."""


class Viewer:
    """A running viewer.

    Args:
        name: What the generator is called in the page; one of the folder's names if it lies there.
        identity: Name of its file's latents that are shown first; None = a seed.
        invert: Makes identities of photos that pages upload; None = none are taken.

    Raises:
        UserError: if nothing can listen at that address.
    """

    def __init__(
        self,
        generator: Generator,
        name: str,
        folder: CheckpointFolder,
        host: str,
        port: int,
        identity: str | None = None,
        invert: Inverter | None = None,
    ) -> None:
        self.identity, self.invert = identity, invert
        self.generator, self.name, self.folder = generator, name, folder
        self.sessions: dict[int, ViewerSession] = {}
        self._lock = threading.Lock()
        self.server = LocalServer()
        try:
            library_port, has_photos = self.server.get_port(), invert is not None
            self.gateway = Gateway(f"{name} - open-eg3d", host, port, library_port, has_photos)
        except BaseException:
            self.server.stop()
            raise
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._forget)

    @property
    def address(self) -> str:
        """Where browsers find it."""
        host = self.gateway.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway.port}"

    def _welcome(self, client: viser.ClientHandle) -> None:
        key = client.camera.near
        if not self.gateway.has(key):
            return  # connected to the library's own port, where nothing is shown
        try:
            self._let_in(client)
        except Exception as error:  # nonsense in place of a first camera
            print(
                f"warning: page {client.client_id} is refused: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
            self.gateway.refuse(key)

    def _let_in(self, client: viser.ClientHandle) -> None:
        with self._lock:
            if len(self.sessions) >= MAX_SESSIONS:
                client.gui.add_markdown("Too many pages are open; try again later.")
                return
            self.sessions[client.client_id] = ViewerSession(
                client,
                self.folder,
                self.generator,
                self.name,
                self.identity,
                self.invert,
                self.gateway.link(client.camera.near),
            )
        # it left while its controls were made
        if client.client_id not in self.server.get_clients():
            self._forget(client)

    def _forget(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self.sessions.pop(client.client_id, None)
        if session is not None:
            session.leave()

    def close(self) -> None:
        """End the servers and all sessions' threads."""
        self.gateway.close()
        self.server.stop()
        with self._lock:
            sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.leave()


@contextmanager
def run_viewer(
    generator: Generator,
    name: str,
    folder: CheckpointFolder,
    host: str = "127.0.0.1",
    port: int = 8080,
    identity: str | None = None,
    invert: Inverter | None = None,
) -> Iterator[Viewer]:
    """A viewer that serves until the block ends.

    Raises:
        UserError: if nothing can listen at that address.
    """
    # they print a traceback for every broken-off or nonsensical message
    for library in ("websockets", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    # they repeat what a page has sent, however long
    warnings.filterwarnings("ignore", module="viser")
    # to a page that left a moment ago
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    viewer = Viewer(generator, name, folder, host, port, identity, invert)
    try:
        yield viewer
    finally:
        viewer.close()
