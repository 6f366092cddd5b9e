"""The viewer in a browser: what a person sees when turning, choosing and mixing heads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from media.viewer.checkpoints import CheckpointFolder
from media.viewer.server import Viewer, run_viewer
from open_eg3d import SHIPPED_MODEL, load_generator
from tests.browser import SOFTWARE_WEBGL, Page, open_browser

pytestmark = pytest.mark.waits

# a part of the window that shows the head and neither controls nor notices
PICTURE = (330, 60, 900, 660)
MIDDLE = (500.0, 400.0)
# mean difference, of 255, between pictures of other heads or views; the same one drawn again
# differs by 0
CHANGED = 4.0


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    with run_viewer(
        load_generator(SHIPPED_MODEL),
        SHIPPED_MODEL.name,
        CheckpointFolder(None, load_generator),
        port=0,
    ) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def page(viewer: Viewer) -> Iterator[Page]:
    with open_browser(SOFTWARE_WEBGL) as browser:
        page = browser.open(viewer.address, 1280, 720)
        page.wait_until("document.body.innerText.includes('frames per second')")
        assert page.run("document.title") == "heads64.pkl - open-eg3d"
        yield page
        assert not page.errors


def seen(page: Page, folder: Path) -> np.ndarray:
    """What the window shows of the head when nothing changes any more."""
    before: np.ndarray | None = None
    for _ in range(60):
        page.run("new Promise(done => setTimeout(done, 400))")
        picture = np.asarray(
            Image.open(page.screenshot(folder / "seen.png", whole=False))
            .convert("RGB")
            .crop(PICTURE)
        ).astype(float)
        if before is not None and np.array_equal(before, picture) and picture.std() > 10:
            return picture
        before = picture
    raise AssertionError("the picture does not come to rest")


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).mean())


def click(page: Page, tag: str, text: str) -> None:
    """Click the innermost element that shows just this text."""
    page.run(
        f"""(() => {{ const found = [...document.querySelectorAll({tag!r})]
            .filter((e) => (e.innerText ?? "").trim() === {text!r});
        document.querySelectorAll('[data-test]').forEach((e) => e.removeAttribute('data-test'));
        found.at(-1).setAttribute('data-test', ''); }})()"""
    )
    page.click("[data-test]")


def test_orbits_seeds_and_mixing_change_what_is_seen(page: Page, tmp_path: Path) -> None:
    front = seen(page, tmp_path)
    page.drag(MIDDLE, (MIDDLE[0] - 60, MIDDLE[1]))
    turned = seen(page, tmp_path)
    assert difference(turned, front) > CHANGED
    click(page, "button", "Next")
    other = seen(page, tmp_path)
    assert difference(other, turned) > CHANGED
    click(page, "button", "Previous")
    assert difference(seen(page, tmp_path), turned) < 0.5
    click(page, "*", "Mix styles")
    shown = (
        "[...document.querySelectorAll('input[type=checkbox]')].find((e) =>"
        " e.getBoundingClientRect().width > 0)"
    )
    page.wait_until(f"!!{shown}")
    page.run(f"{shown}.click()")
    assert difference(seen(page, tmp_path), turned) > CHANGED


def test_the_wheel_zooms(page: Page, tmp_path: Path) -> None:
    before = seen(page, tmp_path)
    page.mouse("mouseWheel", *MIDDLE, deltaX=0, deltaY=-400)
    assert difference(seen(page, tmp_path), before) > CHANGED


def test_an_address_opens_the_view_that_it_names(viewer: Viewer, tmp_path: Path) -> None:
    link = "document.querySelector('a[href*=\"seed=\"]')?.getAttribute('href') ?? ''"
    with open_browser(SOFTWARE_WEBGL) as browser:
        page = browser.open(f"{viewer.address}/?seed=5&view=normals&yaw=-30", 1280, 720)
        page.wait_until(f"({link}).includes('yaw=-30')")
        assert page.run(link) == "/?seed=5&view=normals&yaw=-30"
        named = seen(page, tmp_path)
        assert not page.errors
        plain = browser.open(viewer.address, 1280, 720)
        plain.wait_until("document.body.innerText.includes('frames per second')")
        assert plain.run(link) == ""
        assert difference(named, seen(plain, tmp_path)) > CHANGED
