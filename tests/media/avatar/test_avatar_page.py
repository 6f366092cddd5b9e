"""The page of heads: one file without addresses, and in a browser the pictures that PyTorch
renders.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import export
from media.avatar import write_avatars
from media.avatar.scene import UNIFORM_BYTES
from media.pictures.grids import Pictures, seed_latent, shade_depth, to_pictures
from open_eg3d import SHIPPED_MODEL, load_generator
from tests.browser import SOFTWARE_WEBGL, Browser, Page, open_browser
from tests.tiny import call, finish, start, tiny_config
from training.cameras import CameraSummary, cameras_of, unpack_label
from training.networks.generator import Generator

pytestmark = pytest.mark.waits

READY = "window.avatars && avatars.head >= 0"
COMPLETE = (
    "avatars.full && avatars.full.row >= avatars.full.target.size &&"
    " avatars.elements.canvas.dataset.size"
)
QUIET = "#view=image"  # an address asks for no greeting


@pytest.fixture(scope="module")
def shipped() -> Generator:
    return load_generator(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def shipped_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("avatars") / "heads & more.html"
    finish(
        start("export.py", "--network", SHIPPED_MODEL, "--seeds", "0-2", "--dest", path)
    ).assert_done()
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser(SOFTWARE_WEBGL) as browser:
        yield browser


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of heads and waits until it draws. All end with the test, for they would go on
    drawing.
    """
    pages = []

    def open_page(
        path: Path, address: str = QUIET, width: int = 900, height: int = 500, init: str = ""
    ) -> Page:
        pages.append(browser.open(path.as_uri() + address, width, height, init=init))
        pages[-1].wait_until(READY)
        return pages[-1]

    yield open_page
    for page in pages:
        page.go("about:blank")


def tiny_generator(*assignments: str) -> Generator:
    """A generator of a few channels whose scene is far from empty."""
    torch.manual_seed(3)
    settings = (
        "generator.plane_channels=6",
        "rendering.depth_resolution=7",
        "rendering.depth_resolution_importance=6",
    )
    generator = Generator(tiny_config(*settings, *assignments).model).eval().requires_grad_(False)
    output: Any = generator.decoder.net[2]
    output.bias[0] = 2.0
    generator.cameras = CameraSummary(2.7, (0.05, -0.1, 0.2), yaw_range=(-0.6, 0.5)).to_dict()
    return generator


@torch.no_grad()
def rendered(
    generator: Generator, seed: int, label: torch.Tensor, size: int, view: str = "image"
) -> Pictures:
    """What PyTorch shows, (size, size, 3)."""
    conditioning = cameras_of(generator).frontal_label()[None]
    ws = generator.mapping(seed_latent(seed, generator.z_dim), conditioning)
    out = generator.render(generator.planes(ws), ws, label[None], size)
    return (
        to_pictures(out.image_raw)[0]
        if view == "image"
        else shade_depth(out.image_depth, out.alpha)[0]
    )


def drawn(page: Page, label: torch.Tensor, size: int, view: str = "image") -> Pictures:
    """What the page draws."""
    request = json.dumps({"label": label.tolist(), "size": size, "view": view})
    pixels = page.run(f"Array.from(avatars.picture({request}).pixels)")
    return np.array(pixels, dtype=np.uint8).reshape(size, size, 4)[..., :3]


def psnr(first: Pictures, second: Pictures) -> float:
    return float(10 * np.log10(255**2 / np.square(first.astype(float) - second).mean()))


# --------------------------------------------------------------------------------------------------
# The file


def test_it_is_one_small_file_that_asks_for_nothing_else(shipped_page: Path) -> None:
    text = shipped_page.read_text()
    assert len(text) < 3 * 3e6
    assert not re.search(r"https?://|@import|\burl\(|<link|\bsrc=", text)
    assert "<title>Generated heads: heads &amp; more</title>" in text
    assert not re.search(r"<!-- \w+ -->", text)


def test_a_title_cannot_break_out_of_the_page(tmp_path: Path, show: Callable[..., Page]) -> None:
    title = "</script><script>window.broken = 1</script><!-- scene -->"
    write_avatars(tmp_path / "page.html", tiny_generator(), [0], title=title)
    page = show(tmp_path / "page.html")
    assert page.run("document.title") == title
    assert not page.run("window.broken")


def test_what_is_asked_wrongly_is_one_line(tmp_path: Path) -> None:
    network = str(SHIPPED_MODEL)
    call(
        export.main, "--network", network, "--dest", str(tmp_path / "a.pkl"), "--seeds", "1"
    ).assert_refused(2, "--seeds", ".html")
    call(
        export.main, "--network", network, "--dest", str(tmp_path / "a.html"), "--seeds", "x"
    ).assert_refused(2, "--seeds")
    (tmp_path / "a.html").write_text("mine")
    call(export.main, "--network", network, "--dest", str(tmp_path / "a.html")).assert_refused(
        1, "exists already"
    )
    assert (tmp_path / "a.html").read_text() == "mine"


def test_a_decoder_that_no_browser_need_hold_is_refused(tmp_path: Path) -> None:
    generator = tiny_generator("generator.decoder_hidden=300")
    with pytest.raises(Exception, match=f"{UNIFORM_BYTES}.*300 hidden units"):
        write_avatars(tmp_path / "page.html", generator, [0])
    generator.decoder.net[1] = torch.nn.ReLU()
    with pytest.raises(Exception, match="standard decoder"):
        write_avatars(tmp_path / "page.html", generator, [0])
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# The picture


def test_the_browser_draws_what_pytorch_renders(
    shipped: Generator, shipped_page: Path, show: Callable[..., Page]
) -> None:
    page = show(shipped_page)
    cameras = cameras_of(shipped)
    for seed, yaw, pitch in ((0, 0, 0), (0, 35, 10), (2, -40, -15)):
        page.run(f"avatars.showHead({seed})")
        label = cameras.label(math.radians(yaw), math.radians(pitch))
        got, wanted = drawn(page, label, 64), rendered(shipped, seed, label, 64)
        assert psnr(got, wanted) > 50
        depth, wanted_depth = (
            drawn(page, label, 64, "depth"),
            rendered(shipped, seed, label, 64, "depth"),
        )
        assert ((depth > 0) == (wanted_depth > 0)).mean() > 0.995
        assert np.corrcoef(depth[depth > 0], wanted_depth[depth > 0])[0, 1] > 0.98
    assert not page.errors
    assert page.requests == [shipped_page.as_uri()]


SCENES: dict[str, tuple[str, ...]] = {
    "constant limits": (),
    "limits of the box": (
        'rendering.ray_start="auto"',
        'rendering.ray_end="auto"',
        "rendering.background=[0.2,0.5,0.9]",
    ),
    "one limit of the box": ('rendering.ray_end="auto"', "rendering.background=[1,1,1]"),
    "released": (
        'rendering.plane_axes="released"',
        'rendering.fine_sampling="released"',
        "rendering.density_gain=1.5",
    ),
    "one pass": ("rendering.depth_resolution_importance=0", "rendering.box_warp=1.4"),
}


@pytest.mark.parametrize("scene", SCENES)
def test_every_kind_of_scene_agrees(scene: str, show: Callable[..., Page], tmp_path: Path) -> None:
    generator = tiny_generator(*SCENES[scene])
    write_avatars(tmp_path / "page.html", generator, [4])
    page = show(tmp_path / "page.html")
    label = cameras_of(generator).label(0.4, -0.3)
    # skewed, off the centre, wide enough to miss the box
    label[16:] = torch.tensor([1.9, 0.2, 0.45, 0, 2.2, 0.6, 0, 0, 1])
    wanted = rendered(generator, 4, label, 32)
    assert wanted.std() > 5
    assert psnr(drawn(page, label, 32), wanted) > 45
    assert not page.errors


@pytest.mark.slow
def test_planes_of_the_published_size_agree(show: Callable[..., Page], tmp_path: Path) -> None:
    """Layout of the released FFHQ models: planes of 256 with 32 channels, 64 hidden units, 48 + 48
    samples.
    """
    torch.manual_seed(0)
    config = tiny_config().model
    config.generator = dataclasses.replace(
        config.generator,
        plane_resolution=256,
        plane_channels=32,
        decoder_hidden=64,
        channel_base=1024,
    )
    config.rendering = dataclasses.replace(
        config.rendering,
        depth_resolution=48,
        depth_resolution_importance=48,
        plane_axes="released",
        fine_sampling="released",
    )
    generator = Generator(config).eval().requires_grad_(False)
    write_avatars(tmp_path / "page.html", generator, [1])
    assert (tmp_path / "page.html").stat().st_size < 9e6
    page = show(tmp_path / "page.html", init="window.requestAnimationFrame = () => 1")
    label = cameras_of(generator).label(0.3, 0.2)
    assert psnr(drawn(page, label, 32), rendered(generator, 1, label, 32)) > 45


# --------------------------------------------------------------------------------------------------
# The person


def test_orbit_cameras_are_those_of_the_program(
    shipped: Generator, shipped_page: Path, show: Callable[..., Page]
) -> None:
    page = show(shipped_page)
    cameras = dataclasses.replace(
        cameras_of(shipped), pivot=(0.1, -0.2, 0.3), center=(0.0, 0.1, 0.0)
    )
    orbit: dict[str, Any] = {
        name: getattr(cameras, name) for name in ("radius", "pivot", "center", "intrinsics")
    }
    for yaw, pitch in ((0.0, 0.0), (0.7, -0.3), (-2.5, 1.2)):
        camera = page.run(f"orbitCamera({json.dumps(orbit)}, {{ yaw: {yaw}, pitch: {pitch} }})")
        cam2world, intrinsics = unpack_label(cameras.label(yaw, pitch))
        np.testing.assert_allclose(camera["origin"], cam2world[:3, 3], atol=1e-6)
        np.testing.assert_allclose(np.array(camera["columns"]).T, cam2world[:3, :3], atol=1e-6)
        np.testing.assert_allclose(
            camera["pinhole"], intrinsics[(0, 1, 0, 1), (0, 1, 2, 2)], atol=1e-6
        )


def test_hands_turn_zoom_and_choose(shipped_page: Path, show: Callable[..., Page]) -> None:
    page = show(shipped_page)
    state = "[avatars.orbit.yaw, avatars.orbit.pitch, avatars.orbit.zoom, avatars.head]"
    yaw, pitch, zoom, head = page.run(state)
    page.drag((200, 200), (120, 160))
    turned = page.run(state)
    assert turned[0] > yaw + 0.1
    assert turned[1] < pitch - 0.05
    page.mouse("mouseWheel", 200, 200, deltaX=0, deltaY=-200)
    page.wait_until(f"avatars.orbit.zoom > {zoom} * 1.2")
    page.run("avatars.elements.canvas.focus()")
    page.press("ArrowLeft")
    page.wait_until(f"avatars.orbit.yaw < {turned[0]}")
    page.click("#head-1")
    page.wait_until(f"avatars.head === {head + 1}")
    page.click("#depth")
    page.wait_until("avatars.view === 'depth'")
    page.click("#reset")
    page.wait_until("avatars.orbit.zoom === 1")
    assert not page.errors


def test_two_fingers_zoom_on_a_phone(shipped_page: Path, show: Callable[..., Page]) -> None:
    page = show(shipped_page, width=390, height=844)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.getElementById('canvas').clientWidth") == 390
    fingers = [{"x": 150, "y": 200, "id": 0}, {"x": 240, "y": 200, "id": 1}]
    page.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers})
    apart = [{"x": 100, "y": 200, "id": 0}, {"x": 290, "y": 200, "id": 1}]
    page.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": apart})
    page.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_until("avatars.orbit.zoom > 1.8")
    assert not page.errors


def test_what_is_seen_is_the_picture(
    shipped_page: Path, show: Callable[..., Page], tmp_path: Path
) -> None:
    """The canvas on the screen, upright, complete when still: compared with the front picture that
    the exporter put in.
    """
    page = show(shipped_page, width=420, height=340)
    page.wait_until(COMPLETE, 120)
    box = page.run(
        "(() => { const r = avatars.elements.canvas.getBoundingClientRect(); return [r.x, r.y,"
        " r.right, r.bottom]; })()"
    )
    shot = (
        Image.open(page.screenshot(tmp_path / "shot.png"))
        .convert("RGB")
        .crop(tuple(round(x) for x in box))
    )
    wanted = rendered(
        load_generator(SHIPPED_MODEL),
        0,
        cameras_of(load_generator(SHIPPED_MODEL)).frontal_label(),
        64,
    )
    small = np.asarray(shot.resize((64, 64), Image.Resampling.BOX))
    assert psnr(small[4:-4, 4:-4], wanted[4:-4, 4:-4]) > 22


def test_an_address_brings_back_a_view_and_nonsense_is_passed_over(
    shipped_page: Path, show: Callable[..., Page]
) -> None:
    page = show(shipped_page, "#head=2&yaw=20&pitch=-5&zoom=2&view=depth")
    page.wait_until("avatars.orbit.zoom === 2")
    assert page.run(
        "[avatars.head, avatars.view, Math.round(avatars.orbit.yaw * 180 / Math.PI)]"
    ) == [2, "depth", 20]
    page.go("about:blank")
    page.go(shipped_page.as_uri() + "#head=77&yaw=abc&pitch=1e999&zoom=-3&shift=NaN,1&view=%00")
    page.wait_until(READY)
    yaw, pitch, zoom, head = page.run(
        "[avatars.orbit.yaw, avatars.orbit.pitch, avatars.orbit.zoom, avatars.head]"
    )
    assert head == 0
    assert zoom == 0.5
    assert all(math.isfinite(value) for value in (yaw, pitch))
    assert not page.errors


def test_the_address_holds_views_from_all_sides(
    shipped_page: Path, show: Callable[..., Page]
) -> None:
    page = show(shipped_page)
    page.click("#free")
    page.run("avatars.orbit.move({ yaw: 2.4, pitch: -1.2 })")
    address = page.wait_until("/yaw=137.5.*sides=all/.test(location.hash) && location.hash", 120)
    page.go("about:blank")
    page.go(shipped_page.as_uri() + address)
    page.wait_until(READY)
    page.wait_until("Math.abs(avatars.orbit.yaw - 2.4) < 0.01")
    assert page.run("avatars.elements.free.getAttribute('aria-pressed')") == "true"
    page.run("avatars.followAddress(location.hash.replace('&sides=all', ''))")
    page.wait_until("avatars.orbit.yaw < 1.5")


def test_a_picture_stands_in_until_the_first_frame(
    shipped_page: Path, show: Callable[..., Page]
) -> None:
    page = show(shipped_page, "#head=1", init="window.requestAnimationFrame = () => 1")
    poster = "avatars.elements.poster"
    assert page.run(f"{poster}.src === avatars.scene.heads[1].picture && !{poster}.hidden")
    assert page.run(f"{poster}.clientWidth === avatars.elements.canvas.clientWidth")
    page.run("avatars.draw(0)")
    assert page.run(f"{poster}.hidden")


def test_pictures_are_enlarged_smoothly(shipped_page: Path, show: Callable[..., Page]) -> None:
    """Bicubic like PyTorch's with antialias, which differs at the border alone."""
    page = show(shipped_page, init="window.requestAnimationFrame = () => 1")
    small, large = 24, 96
    pixels = page.run(
        f"""(() => {{
          const renderer = avatars.renderer, gl = renderer.gl;
          renderer.canvas.width = renderer.canvas.height = {large};
          const target = renderer.target("quick", {small});
          renderer.drawRows(target, avatars.camera(), "image", 0, {small});
          renderer.show(target);
          const shown = new Uint8Array({large * large * 4});
          gl.bindFramebuffer(gl.FRAMEBUFFER, null);
          gl.readPixels(0, 0, {large}, {large}, gl.RGBA, gl.UNSIGNED_BYTE, shown);
          return [Array.from(renderer.pixels(target)), Array.from(shown)];
        }})()"""
    )
    drawn_small, shown = (
        np.array(values, dtype=np.uint8).reshape(side, side, 4)[..., :3]
        for values, side in zip(pixels, (small, large), strict=True)
    )
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(drawn_small).movedim(-1, 0)[None].float(),
        size=(large, large),
        mode="bicubic",
        antialias=True,
    )
    wanted = enlarged.clamp(0, 255)[0].movedim(0, -1).numpy()
    inside = (slice(8, -8), slice(8, -8))
    assert np.abs(shown[::-1][inside] - wanted[inside]).max() <= 1
    assert drawn_small.std() > 20


def test_without_webgl_it_says_so(shipped_page: Path, browser: Browser) -> None:
    page = browser.open(
        shipped_page.as_uri(), init="HTMLCanvasElement.prototype.getContext = () => null"
    )
    assert "WebGL 2" in page.wait_until("document.getElementById('message').textContent")


def test_lost_graphics_memory_comes_back(
    shipped_page: Path, show: Callable[..., Page], shipped: Generator
) -> None:
    page = show(shipped_page, "#head=1")
    lose_memory(page)
    page.run("taker.restoreContext()")
    page.wait_until(f"!avatars.renderer.gl.isContextLost() && {READY}")
    label = cameras_of(shipped).label(0.2, 0.0)
    assert psnr(drawn(page, label, 64), rendered(shipped, 1, label, 64)) > 50
    assert not page.errors


def test_nothing_is_drawn_before_lost_graphics_memory_is_filled_again(
    shipped_page: Path, show: Callable[..., Page]
) -> None:
    """Unpacking planes takes a while; the background alone must be neither seen nor saved."""
    page = show(shipped_page, "#head=1")
    page.wait_until(COMPLETE, 120)
    lose_memory(page)
    page.run(
        "{ const load = loadTexels; const wait = (go) => { window.goOn = go; };"
        " window.loadTexels = (...a) => new Promise(wait).then(() => load(...a)); }"
    )
    page.run("window.drawings = 0; avatars.renderer.drawRows = () => { drawings++; }")
    page.run("taker.restoreContext()")
    page.wait_until("!avatars.renderer.gl.isContextLost() && !!window.goOn")
    page.run("window.dispatchEvent(new Event('resize')); document.getElementById('save').click()")
    page.run("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    assert page.run("[drawings, avatars.head, avatars.full]") == [0, -1, None]
    page.run("delete avatars.renderer.drawRows; goOn()")
    page.wait_until(COMPLETE, 120)
    assert page.run("avatars.head") == 1
    assert not page.errors


def lose_memory(page: Page) -> None:
    """As a browser does that needs it elsewhere; it gives it back to pages that heard of that."""
    heard = (
        "avatars.elements.canvas.addEventListener("
        "'webglcontextlost', () => setTimeout(go), { once: true });"
    )
    lose = (
        "window.taker = avatars.renderer.gl.getExtension('WEBGL_lose_context');"
        " taker.loseContext();"
    )
    page.run(f"new Promise((go) => {{ {heard} {lose} }})")
