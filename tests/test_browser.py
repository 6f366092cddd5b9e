"""The browser that other tests look at pages with: what it reports must be what a page does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import SOFTWARE_WEBGL, Browser, BrowserError, open_browser

pytestmark = pytest.mark.waits

PAGE = """<!doctype html><html lang="en"><title>Hello</title>
<body style="margin:0;background:rgb(10,200,30)">
<input id="field" style="position:absolute;top:50px;left:50px">
<button id="more" style="position:absolute;top:1500px"
onclick="document.title = 'Clicked'">more</button><div style="height:2000px"></div></body></html>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser(SOFTWARE_WEBGL) as running:
        yield running


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return path


def test_a_file_is_shown_and_seen(browser: Browser, page_file: Path, tmp_path: Path):
    page = browser.open(page_file, 320, 240)
    assert page.run("document.title") == "Hello"
    assert page.requests == [page_file.as_uri()]
    for whole, height in ((True, 2000), (False, 240)):
        with Image.open(page.screenshot(tmp_path / "page.png", whole)) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape == (height, 320, 3)
        assert pixels[20, 200].tolist() == [10, 200, 30]
    assert page.errors == []


def test_hands_on_the_page(browser: Browser, page_file: Path):
    page = browser.open(page_file)
    page.click("#field")
    page.type("äb")
    page.press("c")
    assert page.run("document.querySelector('#field').value") == "äbc"
    page.click("#more")
    assert page.wait_until("document.title == 'Clicked'") is True
    page.run(
        "window.moves = []; addEventListener('mousemove', e => moves.push([e.clientX, e.buttons]))"
    )
    page.drag((10, 10), (90, 10), steps=4)
    assert page.run("moves") == [[30, 1], [50, 1], [70, 1], [90, 1]]


def test_what_goes_wrong_in_a_page_is_told(browser: Browser, tmp_path: Path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<script>console.error('first'); setTimeout(() => { throw new Error('second')"
        " })</script><img src='absent.png'>"
    )
    page = browser.open(path)
    page.run("new Promise(done => setTimeout(done, 50))")
    text = " ".join(page.errors)
    assert all(word in text for word in ("first", "second", "absent.png"))
    with pytest.raises(BrowserError, match="third"):
        page.run("(() => { throw new Error('third') })()")
    with pytest.raises(BrowserError, match="not true"):
        page.wait_until("false", seconds=0.1)
    with pytest.raises(BrowserError, match="ERR_FILE_NOT_FOUND"):
        page.go(tmp_path / "absent.html")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        pass


def test_pages_of_a_server_and_webgl(browser: Browser, page_file: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(page_file.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = browser.open(
            f"http://127.0.0.1:{server.server_port}/page.html", init="window.early = 7"
        )
        assert page.run("early") == 7
        script = (
            "(() => { const g = document.createElement('canvas').getContext('webgl2'); return g &&"
            " g.getParameter(g.VERSION) })()"
        )
        assert "WebGL 2.0" in page.run(script)
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_browser_a_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPEN_EG3D_BROWSER", "no-such-browser")
    with pytest.raises(BrowserError, match="make browser"), open_browser():
        pass
