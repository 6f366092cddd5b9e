"""Files and URLs: whole-or-nothing writes and a download cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dnnlib.console import UserError, progress

DOWNLOAD_CHUNK = 1 << 20


def cache_dir() -> Path:
    """Folder for downloads and built-in data: $OPEN_EG3D_CACHE, else ~/.cache/open-eg3d."""
    return Path(os.environ.get("OPEN_EG3D_CACHE") or Path.home() / ".cache" / "open-eg3d")


def make_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents.

    Raises:
        UserError: if that is not possible.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create folder {path}: {error.strerror or error}") from error
    return path


def check_utf8(path: str | os.PathLike[str]) -> None:
    """Refuse a name that is no UTF-8, which TensorBoard and logs cannot take.

    Raises:
        UserError: naming it.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {path} is no UTF-8 text; choose another folder") from None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on success sync it and rename it to `path`, on failure
    remove it.

    The name `path` therefore always holds either the old content or the whole new content.

    Raises:
        UserError: if the file cannot be written (full disk, no permission), or `path` is there and
            no file.
    """
    path = Path(path)
    # a rename would put a file in the place of a device
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(
            f"cannot write {path}: it is {'a folder' if path.is_dir() else 'a device or a pipe'};"
            " choose another name"
        )
    make_dir(path.parent)
    # random: machines and containers that share a disk have the same process numbers
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_dir(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another"
            " place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_dir(path: Path) -> None:
    """Make a rename inside folder `path` durable, where the system offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Content of a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the name") from error


def is_url(name: str | os.PathLike[str]) -> bool:
    """True for http(s) addresses."""
    return str(name).startswith(("http://", "https://"))


def local_file(name: str | os.PathLike[str]) -> Path:
    """Path of `name` on this machine; an http(s) URL is fetched once into the cache, whole or not
    at all.

    Raises:
        UserError: if the name is empty, or the download fails or is cut short.
    """
    if not str(name):
        raise UserError("the name of a file is empty; is a variable of the shell not set?")
    if not is_url(name):
        return Path(name)
    url = str(name)
    target = (
        cache_dir()
        / "downloads"
        / (
            hashlib.sha256(url.encode()).hexdigest()[:16]
            + "-"
            + (url.split("?")[0].rsplit("/", 1)[-1] or "file")
        )
    )
    if not target.exists():
        _download(url, target)
    return target


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response, atomic_write(target) as file:
            expected = int(response.headers.get("Content-Length") or 0)
            total = -(-expected // DOWNLOAD_CHUNK) or None
            for chunk in progress(
                _chunks(response, url), f"Downloading {target.name}", total=total, unit="MB"
            ):
                file.write(chunk)
            if expected and file.tell() != expected:
                raise UserError(
                    f"download of {url} stopped after {file.tell()} of {expected} bytes; try again"
                )
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot download {url}: {reason}; check the address and the connection, or fetch it by"
            " hand"
        ) from error


def _chunks(response: IO[bytes], url: str) -> Iterator[bytes]:
    """Parts of a download. Its errors must not pass for those of the file that is written
    meanwhile.
    """
    try:
        while chunk := response.read(DOWNLOAD_CHUNK):
            yield chunk
    except (http.client.HTTPException, OSError) as error:
        raise UserError(
            f"cannot download {url}: the connection broke off ({error}); try again, or fetch it by"
            " hand"
        ) from error


def temporary_dir(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A scratch folder inside `parent`, removed on exit."""
    return tempfile.TemporaryDirectory(dir=make_dir(parent), prefix=".tmp-")
