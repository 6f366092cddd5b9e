"""The folder whose page runs the generator: in a browser, from a plain file server, beside what
PyTorch renders.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import export
from dnnlib.console import UserError
from media.pictures.grids import to_pictures
from media.web import page_files, runtime, write_web_page
from open_eg3d import SHIPPED_MODEL, load_generator, map_latents, seed_latents
from tests.browser import Browser, Page, open_browser
from tests.tiny import call, tiny_config
from training.cameras import CameraSummary, cameras_of
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.networks.generator import Generator

pytestmark = pytest.mark.waits

SOFTWARE_WEBGPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
)
COMPLETE = "window.heads && heads.isComplete()"
LATENTS = Path(runtime.__file__).parent / "page" / "latents.js"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder, by the file server that the documentation names."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose heads are seen, differ, and are conditioned on the camera."""
    torch.manual_seed(3)
    settings = ("rendering.density_gain=30", "generator.pose_conditioning=true")
    config = tiny_config(*settings)
    generator = Generator(config.model)
    generator.backbone.mapping.w_avg.normal_()
    cameras = CameraSummary(2.7, (0.05, -0.1, 0.2), yaw_range=(-0.6, 0.5), pitch=0.1)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pkl"
    checkpoint = Checkpoint(config, G_ema=generator.state_dict(), cameras=cameras.to_dict())
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def site(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "site & more"
    done = call(export.main, "--network", tiny, "--dest", folder, "--format", "web").assert_done()
    assert {path.relative_to(folder) for path in folder.rglob("*.*")} == set(page_files())
    assert done.out.count("Wrote ") == len(page_files())
    return folder


def fill(page: Page, **values: str | float) -> None:
    """Fill the form in and wait for the full picture."""
    for name, value in values.items():
        page.run(f"heads.elements[{json.dumps(name.replace('_', '-'))}].value = '{value}'")
    page.run("heads.elements.form.dispatchEvent(new Event('input'))")
    page.wait_until(COMPLETE)


def shown(page: Page) -> NDArray[np.uint8]:
    page.wait_until(COMPLETE)
    return canvas(page)


def canvas(page: Page) -> NDArray[np.uint8]:
    script = """(() => {
        const {width, height} = heads.elements.canvas;
        const context = heads.elements.canvas.getContext("2d");
        return Array.from(context.getImageData(0, 0, width, height).data);
    })()"""
    pixels = np.array(page.run(script), dtype=np.uint8)
    side = round((len(pixels) / 4) ** 0.5)
    return pixels.reshape(side, side, 4)[..., :3]


@torch.no_grad()
def expected(
    generator: Generator,
    seed: int,
    psi: float = 1.0,
    mix: tuple[int, float, slice] | None = None,
    angles: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """What PyTorch shows; `mix` is another seed, its share and the layers."""
    average = generator.backbone.mapping.w_avg
    ws = map_latents(generator, seed_latents(generator, seed))
    if mix:
        other, share, layers = mix
        blended = ws.lerp(map_latents(generator, seed_latents(generator, other)), share)
        ws = ws.clone()
        ws[:, layers] = blended[:, layers]
    ws = average + psi * (ws - average)
    cameras = cameras_of(generator)
    label = cameras.label(*(angles or (cameras.yaw, cameras.pitch)))[None]
    return to_pictures(generator.render(generator.planes(ws), ws, label).image)[0]


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    error = np.square(first.astype(float) - second).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def check_pictures(page: Page, generator: Generator) -> None:
    """Seeds, truncation, mixes and turned heads, each at least 40 dB from PyTorch's."""
    layers = generator.num_ws
    middle = -(-layers // 2)
    found = [(shown(page), expected(generator, 0))]
    fill(page, seed=4294967295, psi=0.7)
    found.append((shown(page), expected(generator, 4294967295, 0.7)))
    fill(page, seed=3, psi=1, mix_seed=8, share=0.5)
    found.append((shown(page), expected(generator, 3, 1, (8, 0.5, slice(0, layers)))))
    fill(page, share=1, mix_layers="coarse")
    found.append((shown(page), expected(generator, 3, 1, (8, 1.0, slice(0, middle)))))
    fill(page, share=1, mix_layers="fine", psi=0.5)
    found.append((shown(page), expected(generator, 3, 0.5, (8, 1.0, slice(middle, layers)))))
    page.run("heads.orbit.move({yaw: 0.3, pitch: -0.1})")
    turned = expected(generator, 3, 0.5, (8, 1.0, slice(middle, layers)), (0.3, -0.1))
    found.append((shown(page), turned))
    values = [psnr(*pair) for pair in found]
    assert min(values) >= 40, values
    others = [psnr(one, other) for (one, _), (_, other) in itertools.pairwise(found)]
    assert max(others) < 40, others  # each change is seen
    assert not page.errors


def test_pictures_are_those_of_pytorch(tiny: Path, site: Path, browser: Browser) -> None:
    with served(site) as address:
        page = browser.open(address)
        page.wait_until(COMPLETE)
        assert page.run("document.title") == "Generated heads: site & more"
        assert "ms per view, WebAssembly" in page.run("heads.elements.status.innerText")
        check_pictures(page, load_generator(tiny))
        assert all(request.startswith(address) for request in page.requests)
        page.go("about:blank")


@pytest.mark.slow  # a minute of a processor that imitates a graphics processor
def test_webgpu_gives_the_same_pictures(tiny: Path, site: Path) -> None:
    with open_browser(SOFTWARE_WEBGPU) as browser, served(site) as address:
        page = browser.open(f"{address}?run=webgpu")
        page.wait_until(COMPLETE)
        page.run("heads.hold(true)")  # as while it is turned
        page.wait_until("heads.shown.isQuick")
        page.run("heads.hold(false)")
        fill(page, seed=17)
        assert "WebGPU" in page.run("heads.elements.status.innerText")
        assert psnr(shown(page), expected(load_generator(tiny), 17)) >= 40
        page.go("about:blank")


@pytest.mark.slow
def test_shipped_heads_in_the_page(tmp_path: Path, browser: Browser) -> None:
    write_web_page(tmp_path / "site", load_generator(SHIPPED_MODEL), "Heads")
    with served(tmp_path / "site") as address:
        page = browser.open(address)
        page.wait_until(COMPLETE)
        check_pictures(page, load_generator(SHIPPED_MODEL))
        page.go("about:blank")


def test_a_person_turns_the_head_and_types_a_seed(site: Path, browser: Browser) -> None:
    with served(site) as address:
        page = browser.open(address)
        before = shown(page)
        x, y, size = page.run("""(() => {
            const box = heads.elements.canvas.getBoundingClientRect();
            return [box.x, box.y, box.width];
        })()""")
        page.drag((x + size / 2, y + size / 2), (x + size / 4, y + size / 2))
        page.wait_until(COMPLETE)
        assert page.run("heads.orbit.yaw") == pytest.approx(0.6, abs=0.05)
        turned = shown(page)
        assert psnr(before, turned) < 40
        page.click("#reset")
        assert psnr(before, shown(page)) == psnr(before, before)
        page.run("heads.elements.seed.focus(), heads.elements.seed.select()")
        page.type("17")
        assert psnr(before, shown(page)) < 40
        page.type("e99")  # no whole number: the picture stays, and nothing fails
        assert page.run("heads.head()") is None
        page.click("#random")
        assert 0 <= int(page.run("heads.elements.seed.value")) < 2**32
        page.wait_until(COMPLETE)
        assert not page.errors
        page.go("about:blank")


def test_opened_from_disk_it_says_that_it_needs_a_server(site: Path, browser: Browser) -> None:
    page = browser.open(site / "index.html")
    message = page.run("document.getElementById('message').innerText")
    assert "python -m http.server --directory" in message
    assert not page.errors


def test_a_missing_graph_is_said_in_the_page(
    tiny: Path, site: Path, tmp_path: Path, browser: Browser
) -> None:
    """The picture that came with the page stands all the same."""
    shutil.copytree(site, tmp_path / "copy")
    (tmp_path / "copy" / "image.onnx").unlink()
    with served(tmp_path / "copy") as address:
        page = browser.open(address)
        page.wait_until("!document.getElementById('message').hidden")
        assert "image.onnx" in page.run("document.getElementById('message').innerText")
        assert psnr(canvas(page), expected(load_generator(tiny), 0)) >= 40
        page.go("about:blank")


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31, 2**32 - 1])
def test_latents_of_seeds_are_those_of_numpy(seed: int) -> None:
    script = f"{LATENTS.read_text()}\nconsole.log(JSON.stringify([...seedLatent({seed}, 1001)]))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    wanted = np.random.RandomState(seed).randn(1001).astype(np.float32)
    assert np.abs(np.array(json.loads(done.stdout)) - wanted).max() < 1e-6


# --------------------------------------------------------------------------------------------------
# The runtime


def fake_npm(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_what_cannot_be_fetched_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    command = ("--network", tiny, "--dest", tmp_path / "site", "--format", "web")
    monkeypatch.setattr(runtime.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    call(export.main, *command).assert_refused(1, "pip install 'open-eg3d[onnx,web]'")
    fake_npm(tmp_path / "bin", "echo 'npm error network: no\nconnection' >&2; exit 1")
    call(export.main, *command).assert_refused(1, "npm cannot fetch onnxruntime-web")
    assert not (tmp_path / "site").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_files_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime.sys, "executable", str(tmp_path / "bin" / "python"))
    dist = "$3/node_modules/onnxruntime-web/dist"
    touch = " ".join(f"{dist}/{name}" for name in runtime.FILES)
    fake_npm(tmp_path / "bin", f'[ "$2" = --prefix ] && mkdir -p "{dist}" && touch {touch}')
    files = runtime.runtime_files()
    assert [path.name for path in files] == [*runtime.FILES, runtime.LICENCE]
    assert all(path.is_file() for path in files)
    (tmp_path / "bin" / "npm").unlink()
    assert runtime.runtime_files() == files


def test_a_network_that_the_exporter_refuses_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load_generator(tiny)
    monkeypatch.setattr(
        generator.decoder, "forward", lambda x: (torch.linalg.svd(x)[0][..., :1], x)
    )
    with pytest.raises(UserError, match="does not take this network"):
        write_web_page(tmp_path / "site", generator, "Heads")
    assert list(tmp_path.iterdir()) == []
