"""The only server of the viewer that browsers reach.

The viewer library lets a page open a tunnel to the Internet, upload files and change any property
of a control. This server stands in front of it: it refuses pages of other web sites, and passes on
only cameras and values of controls, and, where they are wanted, photos within limits.
"""

from __future__ import annotations

import asyncio
import gzip
import html
import http.client
import random
import re
import threading
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec
from websockets import Headers, Request, Response, Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from dnnlib.console import UserError
from media.viewer.links import LONGEST
from media.viewer.uploads import DROP_SCRIPT, LARGEST_PART, UPLOADS, UploadGate

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LARGEST_MESSAGE = 1 << 16  # bytes that a page may send at once
LINK_COOKIE = "open-eg3d-view"
LINK_SECONDS = 60  # from a page to its connection
ANSWER_SECONDS = 30.0  # longest wait for the library's page
POLICY_VIOLATION, INTERNAL_ERROR = 1008, 1011  # RFC 6455, section 7.4.1


class Gateway:
    """Serves pages from a thread of its own and connects them to the library's server behind it.

    Each connection has a key, a random number that replaces the camera's near plane in the page's
    messages. By it the server behind knows which of its clients came through here.

    Args:
        title: Title of the page.
        host: Address to listen on.
        port: Port to listen on; 0 = any free one.
        library_port: Where the library's server listens, on 127.0.0.1.
        takes_photos: Whether pages may upload photos.

    Raises:
        UserError: if nothing can listen there.
    """

    def __init__(
        self, title: str, host: str, port: int, library_port: int, takes_photos: bool = False
    ) -> None:
        self.title, self.host, self.library_port = title, host, library_port
        self.takes_photos = takes_photos
        self._pages: dict[float, ServerConnection] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._server: Server = self._run(self._listen(port))
        except (OSError, OverflowError) as error:
            self._end_thread()
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host"
            ) from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(next(iter(self._server.sockets)).getsockname()[1])

    def has(self, key: object) -> bool:
        """Whether an open connection has this key."""
        return isinstance(key, float) and key in self._pages

    def link(self, key: float) -> str:
        """The query of the address by which a connection's page was opened, as its cookie tells: it
        is the one thing that the library's page hands on.
        """
        page = self._pages.get(key)
        cookies = page.request.headers.get_all("Cookie") if page and page.request else []
        found = re.search(rf"(?:^|;)\s*{LINK_COOKIE}=([^;]*)", ";".join(cookies))
        return unquote(found[1]) if found else ""

    def refuse(self, key: float) -> None:
        """Close a connection."""
        if page := self._pages.get(key):
            self._run(page.close(POLICY_VIOLATION))

    def close(self) -> None:
        """Close all connections and stop to listen."""
        self._server.close()
        self._run(self._server.wait_closed())
        self._end_thread()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self, port: int) -> Server:
        return await serve(
            self._connect,
            self.host,
            port,
            process_request=self._answer,
            select_subprotocol=lambda _, offered: next(iter(offered), None),
            max_size=LARGEST_MESSAGE + LARGEST_PART * self.takes_photos,
            compression=None,
        )

    # ----------------------------------------------------------------------------------------------
    # the page

    async def _answer(self, _page: ServerConnection, request: Request) -> Response | None:
        """Answer to a request; None = a WebSocket is opened."""
        if not self._is_own_page(request.headers):
            return _response(HTTPStatus.FORBIDDEN, b"not this server's page\n")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        is_packed = "gzip" in request.headers.get("Accept-Encoding", "")
        try:
            return await asyncio.to_thread(self._fetch, request.path, is_packed)
        except (OSError, ValueError, http.client.HTTPException):
            return _response(HTTPStatus.BAD_REQUEST, b"bad request\n")

    def _is_own_page(self, headers: Headers) -> bool:
        """Whether a request comes from a page of this server, or from a program, which names no
        origin. Any web site that is open on this machine could connect otherwise.
        """
        origins, hosts = headers.get_all("Origin"), headers.get_all("Host")
        if not origins:
            return True
        if self.host in LOOPBACK and any(
            host.rsplit(":", 1)[0] not in LOCAL_NAMES for host in hosts
        ):
            return False  # a name that somebody else resolves to this machine
        return [origin.partition("://")[2] for origin in origins] == hosts

    def _fetch(self, path: str, is_packed: bool) -> Response:
        """The library's answer, with our title in the page."""
        library = http.client.HTTPConnection("127.0.0.1", self.library_port, timeout=ANSWER_SECONDS)
        try:
            library.request("GET", path)
            answer = library.getresponse()
            content = answer.read()
        finally:
            library.close()
        title = f"<title>{html.escape(self.title)}</title>".encode()
        content = re.sub(rb"<title>[^<]*</title>", lambda _: title, content, count=1)
        if self.takes_photos:
            content = content.replace(b"</head>", DROP_SCRIPT, 1)
        kind = answer.headers.get("Content-Type", "text/plain")
        response = _response(answer.status, content, kind, is_packed)
        address = urlsplit(path)
        if address.path == "/":
            link = quote(address.query[:LONGEST], safe="")
            response.headers["Set-Cookie"] = (
                f"{LINK_COOKIE}={link}; Path=/; Max-Age={LINK_SECONDS}; SameSite=Strict; HttpOnly"
            )
        return response

    # ----------------------------------------------------------------------------------------------
    # messages

    async def _connect(self, page: ServerConnection) -> None:
        """Pass messages on between a page and the library until one of them closes."""
        key = random.SystemRandom().random()
        self._pages[key] = page
        offered = [Subprotocol(page.subprotocol)] if page.subprotocol else None
        address = f"ws://127.0.0.1:{self.library_port}"
        options: dict[str, Any] = {"max_size": None, "compression": None, "proxy": None}
        try:
            async with connect(address, subprotocols=offered, **options) as library:
                inward = asyncio.create_task(
                    _pass_on(page, library, key, UploadGate() if self.takes_photos else None)
                )
                async for message in library:
                    await page.send(message)
                await page.close()
                await inward
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                await page.close(closed.rcvd.code, closed.rcvd.reason)
        except (OSError, InvalidHandshake):
            await page.close(INTERNAL_ERROR)
        finally:
            del self._pages[key]


async def _pass_on(
    page: ServerConnection, library: ClientConnection, key: float, gate: UploadGate | None
) -> None:
    """Pass on what a page may send; nonsense ends the connection."""
    try:
        async for message in page:
            if allowed := allowed_message(message, key, gate):
                await library.send(allowed)
    finally:
        await library.close()


def _response(
    status: int, content: bytes, kind: str = "text/plain", is_packed: bool = False
) -> Response:
    headers = Headers({"Content-Type": kind, "Connection": "close"})
    if is_packed:
        content = gzip.compress(content)
        headers["Content-Encoding"] = "gzip"
    headers["Content-Length"] = str(len(content))
    return Response(status, HTTPStatus(status).phrase, headers, content)


def allowed_message(data: bytes | str, key: float, gate: UploadGate | None = None) -> bytes | None:
    """What of a page's message reaches the library: cameras, with the key in them, values of
    controls, and uploads as the gate allows them; None = nothing.

    Raises:
        ValueError, DecodeError: if it is no message.
    """
    if isinstance(data, str):
        raise ValueError("text instead of a message")
    message = msgspec.msgpack.decode(data, type=dict[str, Any])
    if "type" not in message:
        raise ValueError("not a message")
    if gate is not None and message["type"] in UPLOADS:
        return data if gate.allows(message) else None
    if len(data) > LARGEST_MESSAGE:
        raise ValueError("too long a message")
    if message.get("type") == "ViewerCameraMessage":
        return msgspec.msgpack.encode({**message, "near": key})
    if message.get("type") == "GuiUpdateMessage":
        updates = message.get("updates")
        return data if isinstance(updates, dict) and set(updates) == {"value"} else None
    return None
