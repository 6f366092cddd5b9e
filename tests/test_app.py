"""The Gradio page, asked by Gradio's own client."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import app
from open_eg3d import map_latents, render, seed_latents, view_label
from tests.browser import open_browser
from tests.tiny import tiny_config
from training.cameras import CameraSummary
from training.networks.generator import Generator

pytestmark = pytest.mark.waits


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(3)
    generator = Generator(tiny_config("rendering.density_gain=30").model)
    generator.cameras = CameraSummary(2.7, (0.0, 0.0, 0.0)).to_dict()
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def address(generator: Generator) -> Iterator[str]:
    page = app.serve(generator, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield f"http://127.0.0.1:{page.server_port}/"
    page.close()


@pytest.fixture
def client(address: str) -> gradio_client.Client:
    """A session of its own: a photo's head stays in it."""
    return gradio_client.Client(address, verbose=False)


def opened(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def expected(generator: Generator, seeds: tuple[int, int], psi: float, share: float) -> Any:
    ws = map_latents(generator, seed_latents(generator, seeds), truncation_psi=psi)
    label = view_label(generator, yaw_degrees=20.0, pitch_degrees=-5.0)
    return render(generator, ws[:1].lerp(ws[1:], share), label[None]).pictures()[0, 0]


def test_pictures_are_those_of_the_seeds(
    generator: Generator, client: gradio_client.Client
) -> None:
    for seeds, psi, share in (((0, 1), 1.0, 0.0), ((2**32 - 1, 7), 0.5, 0.25)):
        found = client.predict(seeds[0], psi, seeds[1], share, 20, -5, api_name="/picture")
        assert np.array_equal(opened(found), expected(generator, seeds, psi, share))


@pytest.mark.parametrize("kind", app.KINDS)
def test_files(
    client: gradio_client.Client,
    kind: str,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = Path(client.predict(kind, 3, 1.0, 1, 0.0, 20, -5, api_name="/file"))
    assert path.suffix[1:] == app.KINDS[kind]
    assert not list(tmp_path.glob("*/head.*"))  # but in Gradio's cache, which is emptied by itself
    if kind == "picture":
        assert np.array_equal(opened(str(path)), expected(generator, (3, 1), 1.0, 0.0))
    elif kind == "mesh":
        mesh: Any = trimesh.load(path, force="mesh")
        assert len(mesh.faces) > 100
    elif kind == "video":
        assert b"ftyp" in path.read_bytes()[:16]
    else:
        assert "<title>Head</title>" in path.read_text()


def test_a_photo_becomes_a_head(
    generator: Generator, client: gradio_client.Client, tmp_path: Path
) -> None:
    """The client's session keeps what was found, and later pictures show it."""
    ws = map_latents(generator, seed_latents(generator, 5))
    front = render(generator, ws, view_label(generator, yaw_degrees=0.0)[None]).pictures()[0, 0]
    Image.fromarray(front).resize((96, 80)).save(tmp_path / "photo.png")
    yaw, told = client.predict(
        gradio_client.handle_file(str(tmp_path / "photo.png")), 5, api_name="/invert"
    )
    assert -90 <= yaw <= 90
    assert "dB from the photo" in told
    shown = opened(client.predict(0, 1.0, 1, 0.0, 20, -5, api_name="/picture"))
    assert not np.array_equal(shown, expected(generator, (0, 1), 1.0, 0.0))


def test_what_is_wrong_is_told_in_the_page(client: gradio_client.Client, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "speck.png")
    with pytest.raises(Exception, match="less than minimum"):
        client.predict(-1, 1.0, 1, 0.0, 0, 0, api_name="/picture")
    with pytest.raises(Exception, match="choose a photo first"):
        client.predict(None, 5, api_name="/invert")
    speck = gradio_client.handle_file(str(tmp_path / "speck.png"))
    with pytest.raises(Exception, match="4 pixels"):
        client.predict(speck, 5, api_name="/invert")


def test_photos_are_limited(client: gradio_client.Client, tmp_path: Path) -> None:
    """In bytes and in pixels, before anything is unpacked."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1e6
    (tmp_path / "large.png").write_bytes(bytes(11 << 20))
    for name, words in (("bomb.png", "larger than 128,000,000 pixels"), ("large.png", "size|413")):
        with pytest.raises(Exception, match=words):
            client.predict(gradio_client.handle_file(str(tmp_path / name)), 5, api_name="/invert")


def test_the_page_in_a_browser(address: str) -> None:
    """The head fills its column, and every way to move a slider turns it."""
    picture = "document.querySelector('#head img')"
    with open_browser() as browser:
        page = browser.open(address)
        page.wait_until(f"{picture}?.naturalWidth > 0")
        width, height = page.run(f"[{picture}.clientWidth, {picture}.clientHeight]")
        assert width == height > 300
        assert page.run(f"getComputedStyle({picture}).objectFit") == "contain"  # not scale-down

        def turn(name: str, key: str) -> None:
            before = page.run(f"{picture}.src")
            page.run(f"document.querySelector('input[aria-label*=\"{name}\"]').focus()")
            page.press(key)
            page.wait_until(f"{picture}.src !== {json.dumps(before)} && {picture}.complete")

        turn("range slider for Yaw", "ArrowLeft")
        turn("number input for Pitch", "ArrowUp")
        turn("Seed", "ArrowUp")
        assert not page.errors
        assert all(request.startswith(address) for request in page.requests)
