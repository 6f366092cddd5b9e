"""The viewer's front door: the only port that browsers reach.

The viewer library lets a page open a tunnel to the Internet, upload files and change any property of
a control. This server stands in front of it: it turns away pages of other sites, and passes on only
cameras and values of controls.
"""

from __future__ import annotations

import asyncio
import gzip
import html
import http.client
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec.msgpack
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from dnnlib.console import UserError

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
LONGEST_MESSAGE = 1 << 16  # bytes that a page sends at once
SECONDS = 10.0  # that the library may take to answer


class Gateway:
    """Connections of pages, passed on to a server on this machine.

    Each connection has a key, a random number that stands in for the camera's near plane in all that
    the page sends. The server behind knows by it who came through the gateway: see `is_admitted`.

    Args:
        title: Of the browser's tab.
        host: Address to listen on.
        inner_port: Where the library's server listens on 127.0.0.1.
    """

    def __init__(self, title: str, host: str, inner_port: int) -> None:
        self.title, self.host, self.inner_port = title, host, inner_port
        self._connections: dict[float, ServerConnection] = {}
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._page: bytes | None = None

    def is_admitted(self, key: float) -> bool:
        """Whether an open connection has this key."""
        return key in self._connections

    def close(self, key: float) -> None:
        """End a connection."""
        if connection := self._connections.get(key):
            asyncio.run_coroutine_threadsafe(connection.close(1008), self._loop)

    # ----------------------------------------------------------------------------------------------
    # pages

    async def _answer(self, _: ServerConnection, request: Request) -> Response | None:
        """What a plain request gets; None lets a web socket be opened."""
        if not self._is_own_page(request.headers):
            return Response(403, "Forbidden", Headers(), b"not this server's page\n")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        try:
            return await asyncio.to_thread(self._fetch, request)
        except (OSError, http.client.HTTPException):
            return Response(400, "Bad Request", Headers())

    def _is_own_page(self, headers: Headers) -> bool:
        """Whether the request names this server. Any page in the browser of somebody who runs a
        viewer could connect otherwise; a program, which is no page, names no origin.
        """
        origin, host = headers.get("Origin"), headers.get("Host", "")
        is_local = host.rpartition(":")[0] in LOCAL_NAMES or self.host not in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        return origin is None or (is_local and origin.split("://", 1)[-1] == host)

    def _fetch(self, request: Request) -> Response:
        """The library's own answer, with the title of this page."""
        is_page = request.path.partition("?")[0] in ("/", "/index.html")
        if is_page and self._page is not None:
            return _response(200, "text/html; charset=utf-8", self._page)
        server = http.client.HTTPConnection("127.0.0.1", self.inner_port, timeout=SECONDS)
        try:
            server.request("GET", request.path)
            answer = server.getresponse()
            content, kind = answer.read(), answer.headers.get("Content-Type", "text/plain")
        finally:
            server.close()
        if is_page and answer.status == 200:
            title = f"<title>{html.escape(self.title)}</title>".encode()
            self._page = re.sub(rb"<title>.*?</title>", lambda _: title, content, count=1)
            content = self._page
        return _response(answer.status, kind, content)

    # ----------------------------------------------------------------------------------------------
    # web sockets

    async def _serve(self, page: ServerConnection) -> None:
        """Pass messages between a page and the library until one of them leaves."""
        key = random.SystemRandom().uniform(1.0, 2.0)
        offered = [Subprotocol(page.subprotocol)] if page.subprotocol else None
        address = f"ws://127.0.0.1:{self.inner_port}"
        self._connections[key] = page
        try:
            async with connect(
                address, subprotocols=offered, max_size=None, compression=None, proxy=None
            ) as server:
                inward = asyncio.create_task(self._pass_on(page, server, key))
                try:
                    async for message in server:
                        await page.send(message)
                    await page.close(server.close_code or 1000, server.close_reason or "")
                finally:
                    inward.cancel()
        except (ConnectionClosed, InvalidHandshake, OSError) as error:
            with suppress(ConnectionClosed):
                received = getattr(error, "rcvd", None)
                await page.close(*(received.code, received.reason) if received else (1011,))
        finally:
            del self._connections[key]

    async def _pass_on(self, page: ServerConnection, server: ClientConnection, key: float) -> None:
        with suppress(ConnectionClosed):
            try:
                async for message in page:
                    if allowed := allowed_message(message, key):
                        await server.send(allowed)
            except ValueError:
                await page.close(1003)
            await server.close()
