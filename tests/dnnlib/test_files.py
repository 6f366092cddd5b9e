"""Whole-or-nothing files and downloads, with writes that fail and servers that hang up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dnnlib import files
from dnnlib.console import UserError
from tests.tiny import ROOT

CONTENT = bytes(range(256)) * 20_000


# --------------------------------------------------------------------------------------------------
# Writing


def test_a_written_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "new" / "folder" / "file") as file:
        file.write(CONTENT)
        assert not (tmp_path / "new" / "folder" / "file").exists()
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new" / "folder") == ["file"]


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files.atomic_write(path) as file:
        file.write(CONTENT)
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == CONTENT


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("folder", "a folder"), ("pipe", "a device or a pipe")):
        with pytest.raises(UserError, match=kind), files.atomic_write(tmp_path / name):
            pass
    assert (tmp_path / "folder").is_dir()
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), KeyboardInterrupt(), UserError("a picture is damaged")]
)
def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with files.atomic_write(path) as file:
            file.write(CONTENT)
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_of_one_process_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines or containers on one disk may both have a process of the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "file"
    with files.atomic_write(path) as slow:
        slow.write(CONTENT[:1000])
        with files.atomic_write(path) as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
        slow.write(CONTENT[1000:])
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    with (
        pytest.raises(UserError, match=r"cannot write .*file: No space left on device"),
        files.atomic_write(path) as file,
    ):
        file.write(CONTENT)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_synced_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> Any:
        original = getattr(os, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    with files.atomic_write(tmp_path / "file") as file:
        file.write(CONTENT)
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


# The largest file a process may write is limited: the kernel then fails the write itself, as a full
# disk does.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from dnnlib.console import UserError
from dnnlib.files import atomic_write
try:
    with atomic_write(sys.argv[1]) as file:
        file.write(bytes(1_000_000))
except UserError as error:
    sys.exit(str(error))
"""


def test_a_write_that_the_system_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"cannot write {path}: ")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(UserError, match=r"cannot create folder"),
        files.atomic_write(tmp_path / "file" / "inside"),
    ):
        pass
    with pytest.raises(UserError, match=r"cannot create folder"):
        files.make_dir(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(UserError, match=r"cannot write .*folder"),
        files.atomic_write(tmp_path / "folder"),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_scratch_folders_go_away(tmp_path: Path) -> None:
    with files.temporary_dir(tmp_path / "new") as folder:
        (Path(folder) / "x").write_bytes(b"")
        assert Path(folder).parent == tmp_path / "new"
    assert os.listdir(tmp_path / "new") == []


# --------------------------------------------------------------------------------------------------
# Downloads


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT whole, cut off in several ways, or not at all."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requests.append(self.path)
        kind = self.path.split("?")[0].strip("/").split(".")[0]
        self.close_connection = True
        if kind == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if kind.startswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n")
            if kind == "chunked":
                self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100_000] if kind == "cut" else CONTENT)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """A web server of this machine only."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "downloads"
    return os.listdir(folder) if folder.exists() else []


def test_names_of_files_are_themselves(tmp_path: Path) -> None:
    assert files.local_file(tmp_path / "x.zip") == tmp_path / "x.zip"
    assert files.local_file("data/https.zip") == Path("data/https.zip")
    assert not files.is_url("ftp://x")
    assert files.is_url("https://x/y")


@pytest.mark.parametrize("name", ["whole.pkl", "chunked.zip", "whole.pkl?token=1"])
def test_a_url_is_fetched_once(server: Server, tmp_path: Path, name: str) -> None:
    path = files.local_file(f"{server.url}/{name}")
    assert path.read_bytes() == CONTENT
    assert path.name.endswith(name.split("?")[0])
    assert files.local_file(f"{server.url}/{name}") == path
    assert server.requests == [f"/{name}"]
    assert cached(tmp_path) == [path.name]


def test_different_urls_do_not_share_a_file(server: Server) -> None:
    assert (
        len(
            {
                files.local_file(f"{server.url}/{name}")
                for name in ("whole.pkl", "whole.pkl?v=2", "a/whole.pkl")
            }
        )
        == 3
    )


@pytest.mark.parametrize("kind", ["cut", "chunked-cut", "missing"])
def test_a_failed_download_leaves_nothing(server: Server, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"download") as raised:
        files.local_file(f"{server.url}/{kind}.pkl")
    assert f"{server.url}/{kind}.pkl" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "free some space" not in str(raised.value)
    assert cached(tmp_path) == []


def test_a_server_that_hangs_up_is_told_apart_from_a_full_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(*_: object, **__: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    monkeypatch.setattr("http.client.HTTPResponse.read", reset)
    with pytest.raises(UserError, match=r"cannot download http.*Connection reset"):
        files.local_file(f"{server.url}/whole.pkl")
    assert cached(tmp_path) == []


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    with Server() as closed:
        url = closed.url
    with pytest.raises(UserError, match=r"cannot download"):
        files.local_file(f"{url}/whole.pkl")
    with pytest.raises(UserError, match=r"cannot download"):
        files.local_file("http://127.0.0.1:notaport/x")
    assert cached(tmp_path) == []


def test_a_download_that_does_not_fit_says_so(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        files.local_file(f"{server.url}/whole.pkl")
    assert cached(tmp_path) == []


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.setenv("OPEN_EG3D_CACHE", "")
    assert files.cache_dir() == Path.home() / ".cache" / "open-eg3d"
