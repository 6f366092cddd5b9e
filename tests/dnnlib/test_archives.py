"""Members of archives: names that stay inside, sizes that are kept to."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import pytest

from dnnlib.archives import is_link, open_member, read_member
from tests.hostile.datasets import NAME, plain_zip, swelling, with_link


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_content_comes_back(tmp_path: Path, method: int) -> None:
    content = bytes(range(256)) * 1000
    with zipfile.ZipFile(
        plain_zip(tmp_path / "a.zip", {"a": content, "empty": b""}, method)
    ) as archive:
        assert read_member(archive, "a", len(content)) == content
        assert read_member(archive, "empty", 0) == b""
        with pytest.raises(ValueError, match="unpacks to"):
            read_member(archive, "a", len(content) - 1)
        with pytest.raises(KeyError):
            read_member(archive, "b", 100)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_unpacks_all_at_once_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(plain_zip(tmp_path / "a.zip", {"a": b"x" * 1000}, method)) as archive:
        for read in (lambda: read_member(archive, "a", 1000), lambda: open_member(archive, "a")):
            with pytest.raises(ValueError, match="uncommon way"):
                read()


def test_no_more_than_the_stated_size_is_unpacked(tmp_path: Path) -> None:
    """The library's own read() unpacks 64 MB here before it looks at the size."""
    with zipfile.ZipFile(swelling(tmp_path / "a.zip", NAME, 64, stated=5000)) as archive:
        tracemalloc.start()
        try:
            with pytest.raises(zipfile.BadZipFile):
                read_member(archive, NAME, 1 << 20)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_few_bytes_that_unpack_to_many_are_refused(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(swelling(tmp_path / "a.zip", NAME, 100)) as archive,
        pytest.raises(ValueError, match="unpacks to 100 MB"),
    ):
        read_member(archive, NAME, 1 << 30)


def test_links_are_seen(tmp_path: Path) -> None:
    with zipfile.ZipFile(with_link(tmp_path / "a.zip")) as archive:
        assert [info.filename for info in archive.infolist() if is_link(info)] == [NAME]
