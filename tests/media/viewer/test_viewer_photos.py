"""A photo dropped on the viewer's page becomes an identity that is turned, edited and mixed."""

from __future__ import annotations

import base64
import copy
import functools
import io
import operator
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import open_eg3d
import viewer as command
from cli.photos import GUESSED_PRIOR, Subject
from dnnlib.console import UserError
from media.viewer.checkpoints import CheckpointFolder
from media.viewer.server import Viewer, run_viewer
from media.viewer.uploads import OnProgress
from media.viewer.view_renderer import Latents, View, ViewRenderer
from open_eg3d import SHIPPED_MODEL, inverting, load_generator
from tests.browser import SOFTWARE_WEBGL, Page, open_browser
from tests.media.viewer.test_viewer_browser import CHANGED, difference, seen
from tests.tiny import PATIENCE, call
from tests.viewer_page import RawPage
from training.networks.generator import Generator

pytestmark = pytest.mark.waits

DROP = """(() => {
    const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "ada.png", { type: "image/png" }));
    dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
})()"""
SAYS = "document.body.innerText.includes(%r)"
CHOSEN = "!![...document.querySelectorAll('input')].find((e) => e.value === 'photo-1')"


def drop(page: Page, data: bytes) -> None:
    page.run(DROP % base64.b64encode(data).decode())


def photo() -> bytes:
    """A head of the shipped model, at 64 pixels."""
    generator = load_generator(SHIPPED_MODEL)
    file = io.BytesIO()
    ws = open_eg3d.map_latents(generator, open_eg3d.seed_latents(generator, [3]))
    views = open_eg3d.render(generator, ws, open_eg3d.view_label(generator, 0.0))
    Image.fromarray(views.pictures()[0, 0]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def calls() -> list[bool]:
    return []


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch, calls: list[bool]) -> Iterator[Viewer]:
    """Photos are inverted as the command line does, in one step each."""
    monkeypatch.setattr(command, "PHOTO_SECONDS", 0.0)
    monkeypatch.setattr(inverting, "load_perceptual", lambda *_: (None, "none"))

    def counted(*arguments: Any) -> tuple[Generator, dict[str, Any]]:
        calls.append(arguments[2])
        return command.invert_photo(*arguments)

    generator = load_generator(SHIPPED_MODEL)
    folder = CheckpointFolder(None, load_generator)
    with run_viewer(generator, "heads64.pkl", folder, port=0, invert=counted) as viewer:
        yield viewer


def test_a_dropped_photo_is_shown_and_mixed(
    viewer: Viewer, calls: list[bool], tmp_path: Path
) -> None:
    with open_browser(SOFTWARE_WEBGL) as browser:
        page = browser.open(viewer.address, 1280, 900)
        page.wait_until(SAYS % "frames per second")
        before = seen(page, tmp_path)
        box = (
            "[...document.querySelectorAll('input[type=checkbox]')].find((e) =>"
            " e.getBoundingClientRect().width > 0)"
        )
        page.run(f"{box}.click()")  # cut out already
        drop(page, photo())
        page.wait_until(CHOSEN)
        after = seen(page, tmp_path)
        assert difference(after, before) > CHANGED
        drop(page, b"no picture")
        page.wait_until(SAYS % "cannot be read")
        assert difference(seen(page, tmp_path), after) < 0.5
        (session,) = viewer.sessions.values()
        assert list(session.photos) == ["photo-1"]
        assert calls[0]  # the box was ticked
        assert not page.errors


def upload(page: RawPage, data: bytes) -> None:
    """A photo in one part, by the newest button."""
    names = {
        "source_component_uuid": page.controls["Choose or drop a photo"]["uuid"],
        "transfer_uuid": data.hex(),
    }
    about = {"filename": "x.png", "mime_type": "image/png"}
    page.send("FileTransferStartUpload", **names, **about, part_count=1, size_bytes=len(data))
    page.send("FileTransferPart", **names, part_index=0, content=data)


def test_each_photo_is_shown_by_its_own_network() -> None:
    """Seeds by the one that was there; names of the file stay; a photo that is done when another
    checkpoint is shown is dropped.
    """
    generator = load_generator(SHIPPED_MODEL)
    entry = {"ws": torch.zeros(generator.num_ws, generator.w_dim), "camera": None, "source": ""}
    generator.latents = {"photo-1": entry}
    made: list[Generator] = []

    def tune(base: Generator, data: bytes, *_: object) -> tuple[Generator, dict[str, Any]]:
        made.append(copy.deepcopy(base))
        made[-1].decoder.net[2].bias[1:] += len(made)
        if data == b"late":
            session.base = copy.copy(base)  # as by the choice of another checkpoint
        return made[-1], entry

    folder = CheckpointFolder(None, load_generator)
    with run_viewer(generator, "heads64.pkl", folder, port=0, invert=tune) as viewer:
        page = RawPage(viewer.address)
        page.enter()
        (session,) = viewer.sessions.values()
        for count, data in enumerate((b"a", b"b"), 1):
            page.full_picture(functools.partial(upload, page, data))
            assert len(session.photos) == count
            page.wait_for(lambda: "Mesh" in page.controls)
        before = session.renderer
        upload(page, b"late")
        page.wait_for(lambda: "drop it again" in page.status)
        assert session.renderer is before
        shown = {
            name: before.render(Latents(identity=name), View())
            for name in ("photo-1", "photo-2", "photo-3")
        }
        seed = before.render(Latents(seed=4), View())
        page.close()
    assert np.array_equal(seed, ViewRenderer(generator).render(Latents(seed=4), View()))
    for name, one in zip(shown, (generator, *made), strict=False):
        alone = ViewRenderer(one).render(Latents(identity="photo-1"), View())
        assert np.array_equal(shown[name], alone)
    assert not np.array_equal(shown["photo-2"], shown["photo-3"])


@pytest.mark.parametrize("origin", ["guessed", "estimated"])
def test_a_guessed_camera_may_move_far(origin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by invert.py."""
    picture, asked = Image.new("RGB", (64, 64)), dict[str, Any]()
    subject = Subject("a", "a", "", picture, torch.zeros(25), origin)

    def inverted(*_: object, **options: Any) -> None:
        asked.update(options)
        raise UserError("ended")

    monkeypatch.setattr(command, "subjects_of", lambda *_: [subject])
    monkeypatch.setattr(command, "invert", inverted)
    with pytest.raises(UserError, match="ended"):
        command.invert_photo(load_generator(SHIPPED_MODEL), b"", False, lambda *_: None)
    assert asked["optimise_pose"] is (origin == "guessed")
    assert (asked["settings"].latents.pose_prior == GUESSED_PRIOR) is (origin == "guessed")


def test_photos_are_inverted_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pictures are rendered in: half precision rounds away what a step changes. The
    parameters are the same memory, and the pictures' own precision stays.
    """
    generator, asked = load_generator(SHIPPED_MODEL), []
    generator.set_conv_dtype(backbone=torch.bfloat16, superresolution=torch.bfloat16)
    subject = Subject("a", "a", "", Image.new("RGB", (64, 64)), torch.zeros(25), "given")

    def inverted(asked_of: Generator, *_: object, **__: object) -> None:
        asked.append(asked_of)
        raise UserError("ended")

    monkeypatch.setattr(command, "subjects_of", lambda *_: [subject])
    monkeypatch.setattr(command, "invert", inverted)
    with pytest.raises(UserError, match="ended"):
        command.invert_photo(generator, b"", True, lambda *_: None)
    for one, dtype in ((asked[0], torch.float32), (generator, torch.bfloat16)):
        assert {part.conv_dtype for part in one.modules() if hasattr(part, "conv_dtype")} == {dtype}
    assert all(map(operator.is_, asked[0].parameters(), generator.parameters()))


@pytest.mark.parametrize("act", ["photo", "Picture (PNG)"])
def test_whatever_fails_is_told(
    act: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of the line that says what is being made; the next one has its turn."""

    def broken(*_: object) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("media.viewer.downloads.png", broken)
    folder = CheckpointFolder(None, load_generator)
    generator = load_generator(SHIPPED_MODEL)
    with run_viewer(generator, "heads64.pkl", folder, port=0, invert=broken) as viewer:
        page = RawPage(viewer.address)
        page.enter()
        for turn in range(3):  # more than may be made at once
            if act == "photo":
                upload(page, b"abc%d" % turn)
            else:
                page.set(act, True)
            page.wait_for(lambda: "see the program's output" in page.status)
            page.full_picture(functools.partial(page.set, "Seed", 1 + turn))
        page.close()
    assert capsys.readouterr().err.count("RuntimeError: out of memory") == 3


def test_a_page_that_left_ends_its_inversion() -> None:
    """What is told of the progress raises, and nothing is kept."""
    started, ended = threading.Event(), threading.Event()

    def endless(_: Generator, data: bytes, is_cut_out: bool, on_step: OnProgress) -> Any:
        assert (data, is_cut_out) == (b"abc", False)
        started.set()
        try:
            while True:
                on_step("latents", 0.5, 1.0)
                time.sleep(0.01)
        finally:
            ended.set()

    folder = CheckpointFolder(None, load_generator)
    generator = load_generator(SHIPPED_MODEL)
    with run_viewer(generator, "heads64.pkl", folder, port=0, invert=endless) as viewer:
        page = RawPage(viewer.address)
        page.enter()
        upload(page, b"abc")
        assert started.wait(PATIENCE)
        page.close()
        assert ended.wait(PATIENCE)


def test_photos_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they are switched on; without them no page has a button."""
    taken = []

    def run(*arguments: Any) -> None:
        taken.append(arguments[-1] is not None)
        raise UserError("ended")

    monkeypatch.setattr("media.viewer.server.run_viewer", run)
    for options in ((), ("--host", "0.0.0.0"), ("--host", "0.0.0.0", "--photos"), ("--no-photos",)):
        call(command.main, "--network", SHIPPED_MODEL, *options).assert_refused(1, "ended")
    assert taken == [True, False, True, False]
