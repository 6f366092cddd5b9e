"""Headless Chromium for tests of pages: found on the machine (`make browser` installs it), driven
through its debugging pipe.

    with open_browser() as browser:
        page = browser.open(Path("report.html"))
        assert page.run("document.title") == "Report"
        page.screenshot(tmp_path / "report.png")
        assert not page.errors

Nothing but the browser is needed: its DevTools protocol is JSON, and a pipe carries it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_PATH = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
PACKAGE = "chromium"
FLAGS = (
    "--headless=new",
    # it opens our own pages only, often as root in a container, where there is no other way
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
)
SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
COMMAND_PIPE, ANSWER_PIPE = 3, 4  # file descriptors where the browser looks for its pipes
FREE_DESCRIPTORS = 10
SECONDS = 180.0  # until a page that does not answer is a failure; a busy machine takes its time


class BrowserError(Exception):
    """The browser is missing, ended, does not answer, or a script in the page failed."""


# --------------------------------------------------------------------------------------------------
# The program


def find_browser() -> str:
    """Path of Chromium or Chrome: $OPEN_EG3D_BROWSER, else what the machine has.

    Raises:
        BrowserError: if there is none.
    """
    named = os.environ.get("OPEN_EG3D_BROWSER")
    for name in (named,) if named else (*NAMES, str(MAC_PATH)):
        if path := shutil.which(name):
            return path
    raise BrowserError(
        "no Chromium found; install it with `make browser`, or name one in OPEN_EG3D_BROWSER"
    )


def install_browser() -> None:
    """Install Chromium with apt, where there is none."""
    with contextlib.suppress(BrowserError):
        find_browser()
        return
    if not shutil.which("apt-get"):
        raise BrowserError(
            "this machine has no apt-get; install Chromium or Chrome by hand, or name one in"
            " OPEN_EG3D_BROWSER"
        )
    start = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", PACKAGE]):
        subprocess.run(
            [*start, "apt-get", "-qq", *arguments],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    find_browser()


@contextlib.contextmanager
def open_browser(flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A running browser with a profile of its own, which ends with the block.

    Args:
        flags: more command line flags; `SOFTWARE_WEBGL` gives WebGL on machines without a GPU.
    """
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        browser = Browser(profile, flags)
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    """A browser process. Use `open_browser`."""

    def __init__(self, profile: str, flags: Sequence[str]) -> None:
        self.log = Path(profile) / "log.txt"
        commands, self._out = (_high(descriptor) for descriptor in os.pipe())
        self._in, answers = (_high(descriptor) for descriptor in os.pipe())
        program = find_browser()
        actions: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, commands, COMMAND_PIPE),
            (os.POSIX_SPAWN_DUP2, answers, ANSWER_PIPE),
        ]
        arguments = [program, *FLAGS, f"--user-data-dir={profile}/profile", *flags, "about:blank"]
        self._pid = os.posix_spawn(
            program, arguments, os.environ, file_actions=actions, setpgroup=0
        )
        os.close(commands)
        os.close(answers)
        self._received = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    def open(
        self, address: str | os.PathLike[str], width: int = 1280, height: int = 900, init: str = ""
    ) -> Page:
        """A new page that shows `address` (a URL or a file) in a window of that size, loaded.

        Args:
            init: JavaScript to run before any of the page's own.
        """
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})[
            "sessionId"
        ]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        if init:
            page.send("Page.addScriptToEvaluateOnNewDocument", {"source": init})
        page.go(address)
        return page

    def send(
        self,
        method: str,
        parameters: dict[str, Any] | None = None,
        session: str | None = None,
        seconds: float = SECONDS,
    ) -> Any:
        """Give a command of the DevTools protocol and return its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters or {}} | (
            {"sessionId": session} if session else {}
        )
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError(f"the browser has ended: {self._last_words()}") from error
        end = time.monotonic() + seconds
        while True:
            answer = self.receive(end - time.monotonic(), method)
            if answer is not None and answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def receive(self, seconds: float, what: str) -> dict[str, Any] | None:
        """The next message; None if it is an event, which goes to its page."""
        end = time.monotonic() + seconds
        while b"\0" not in self._received:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise BrowserError(f"{what}: no answer in {seconds:.0f} s: {self._last_words()}")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise BrowserError(f"{what}: the browser has ended: {self._last_words()}")
            self._received += part
        line, self._received = self._received.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "id" in message:
            return message
        page = self._pages.get(message.get("sessionId", ""))
        if page:
            page.note(message["method"], message["params"])
        return None

    def close(self) -> None:
        """End the browser and all its processes."""
        with contextlib.suppress(BrowserError):
            self.send("Browser.close", seconds=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._out)
        os.close(self._in)

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return text[-500:] or "it said nothing"


def _high(descriptor: int) -> int:
    """The same file under a number that is out of the way of those that the browser expects."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTORS)
    os.close(descriptor)
    return copy


# --------------------------------------------------------------------------------------------------
# A page


class Page:
    """A page in the browser.

    Attributes:
        errors: uncaught exceptions, console errors and failed requests so far.
        console: all that the page wrote to the console.
        requests: addresses that were asked for, in order; `data:` and `blob:` ones left out.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.errors: list[str] = []
        self.console: list[str] = []
        self.requests: list[str] = []
        self._loads = 0

    def send(
        self, method: str, parameters: dict[str, Any] | None = None, seconds: float = SECONDS
    ) -> Any:
        """A command of the DevTools protocol for this page."""
        return self.browser.send(method, parameters, self.session, seconds)

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Take notice of an event."""
        if method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_exception_text(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            text = " ".join(
                str(value.get("value", value.get("description"))) for value in parameters["args"]
            )
            self.console.append(text)
            if parameters["type"] in ("error", "assert"):
                self.errors.append(text)
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(
                f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"
            )
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(
            ("data:", "blob:")
        ):
            self.requests.append(parameters["request"]["url"])

    def go(self, address: str | os.PathLike[str], seconds: float = SECONDS) -> None:
        """Show another address (a URL or a file) and wait until it has loaded."""
        text = os.fspath(address)
        url = (
            text
            if "://" in text or text.startswith(("data:", "about:"))
            else Path(text).resolve().as_uri()
        )
        loads, end = self._loads, time.monotonic() + seconds
        failure = self.send("Page.navigate", {"url": url}, seconds).get("errorText")
        if failure:
            raise BrowserError(f"{url}: {failure}")
        while self._loads == loads:
            self.browser.receive(end - time.monotonic(), url)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Set the size of the window in CSS pixels; `scale` device pixels each."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, seconds: float = SECONDS) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise; plain values only.

        Raises:
            BrowserError: if it throws.
        """
        options = {
            "expression": script,
            "returnByValue": True,
            "awaitPromise": True,
            "userGesture": True,
        }
        answer = self.send("Runtime.evaluate", options, seconds)
        if "exceptionDetails" in answer:
            raise BrowserError(_exception_text(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_until(self, script: str, seconds: float = SECONDS) -> Any:
        """Wait until a JavaScript expression is true in the page's eyes, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise BrowserError(f"{script}: not true in {seconds:.0f} s; errors: {self.errors}")
            time.sleep(0.05)
        return value

    def screenshot(self, path: str | os.PathLike[str], whole: bool = True) -> Path:
        """Write a PNG of the whole page, or of what the window shows of it."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {**size, "scale": 1}
        Path(path).write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", options)["data"])
        )
        return Path(path)

    def mouse(self, kind: str, x: float, y: float, button: str = "left", **more: Any) -> None:
        """A mouse event at CSS pixels of the window: mousePressed, mouseReleased, mouseMoved, or
        mouseWheel with deltaX and deltaY.
        """
        held = {"buttons": 1} if kind == "mouseMoved" and button == "left" else {}
        self.send(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y, "button": button, "clickCount": 1, **held, **more},
        )

    def click(self, selector: str) -> None:
        """Click the middle of the first element of a CSS selector."""
        script = f"""(() => {{
            const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center"}});
            const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2];
        }})()"""
        x, y = self.run(script)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        """Press the left button at `start`, move to `end` in some steps, and let go."""
        self.mouse("mousePressed", *start)
        for step in range(1, steps + 1):
            share = step / steps
            self.mouse(
                "mouseMoved",
                start[0] + (end[0] - start[0]) * share,
                start[1] + (end[1] - start[1]) * share,
            )
        self.mouse("mouseReleased", *end)

    def type(self, text: str) -> None:
        """Type text into the element that has the focus."""
        self.send("Input.insertText", {"text": text})

    def press(self, key: str) -> None:
        """Press and release a key by its DOM name: Enter, ArrowLeft, a, ..."""
        letter = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        event = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), **letter}
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **event})
        self.send(
            "Input.dispatchKeyEvent",
            {"type": "keyUp", **{name: value for name, value in event.items() if name != "text"}},
        )


def _exception_text(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


if __name__ == "__main__":
    try:
        install_browser()
    except (BrowserError, subprocess.CalledProcessError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
    print(find_browser())
