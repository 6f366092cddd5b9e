"""The viewer's server: what pages get, honest and hostile ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import msgspec.msgpack
import numpy as np
import pytest
import torch
import trimesh
import viser
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import viewer as command
from media.viewer import downloads
from media.viewer import server as server_module
from media.viewer.checkpoints import CheckpointFolder
from media.viewer.gateway import LARGEST_MESSAGE, allowed_message
from media.viewer.server import Viewer, run_viewer
from media.viewer.uploads import LARGEST_PHOTO, MOST_PHOTOS, UploadGate
from media.viewer.view_renderer import Latents, View, ViewRenderer
from open_eg3d import SHIPPED_MODEL, load_generator
from tests.media.viewer.test_view_renderer import tiny_generator, write_generator
from tests.tiny import PATIENCE, call, finish, start
from tests.viewer_page import RawPage
from training.checkpoints.checkpoint import load_weights

pytestmark = pytest.mark.waits

SAMPLES = load_weights(SHIPPED_MODEL).config.rendering.depth_resolution


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("viewer")
    write_generator(folder / "secret.pkl", 0)
    write_generator(folder / "inside" / "other.pkl", 5)
    (folder / "inside" / "broken.pkl").write_text("hello")
    with run_viewer(
        load_generator(SHIPPED_MODEL),
        "heads64.pkl",
        CheckpointFolder(folder / "inside", load_generator),
        port=0,
    ) as viewer:
        yield viewer


@pytest.fixture
def enter(viewer: Viewer) -> Iterator[Callable[[], RawPage]]:
    """Opens pages, which leave when the test ends."""
    pages = []

    def open_page() -> RawPage:
        pages.append(RawPage(viewer.address))
        pages[-1].enter()
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def rendered(viewer: Viewer, latents: Latents, view: View) -> np.ndarray:
    return ViewRenderer(viewer.generator).render(latents, view)


def is_same(shown: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal, but for a few values that lie between two levels: another thread may add up in another
    order.
    """
    difference = np.abs(shown.astype(int) - wanted)
    return difference.max() <= 1 and difference.mean() < 1e-3


def is_close(shown: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal, but for the digits of a camera that a link leaves out."""
    return shown.shape == wanted.shape and np.abs(shown.astype(int) - wanted).mean() < 0.5


# --------------------------------------------------------------------------------------------------
# Honest pages


def test_every_control_changes_what_it_says(viewer: Viewer, enter: Callable[[], RawPage]) -> None:
    page = enter()
    front: dict[str, Any] = {"yaw": 0.0, "pitch": 0.0, "resolution": 64, "samples": SAMPLES}
    shown = page.full_picture(lambda: page.look((0.0, 0.0, 2.7)))
    assert is_same(shown, rendered(viewer, Latents(), View(**front)))
    layers = viewer.generator.num_ws
    steps: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        ("Seed", 3, {"seed": 3}, {}),
        ("Truncation", 0.5, {"truncation_psi": 0.5}, {}),
        ("Truncated layers", 4, {"truncation_cutoff": 4}, {}),
        ("Second seed", 7, {"other_seed": 7}, {}),  # is not seen before blending, but drawn
        ("Blend", 0.4, {"blend": 0.4}, {}),
        ("Mix", True, {"style_seed": 2, "style_layers": (layers // 2, layers - 1)}, {}),
        ("Style seed", 9, {"style_seed": 9}, {}),
        ("Its layers", [1, 6], {"style_layers": (1, 6)}, {}),
        ("View", "raw", {}, {"kind": "raw"}),
        ("Samples per ray", 20, {}, {"samples": 20}),
        ("Rendering pixels", 40, {}, {"resolution": 40}),
        ("Field of view", 30.0, {}, {"field_of_view": 30.0}),
        ("View", "normals", {}, {"kind": "normals"}),
        ("View", "depth", {}, {"kind": "depth"}),
    ]
    who: dict[str, Any] = {}
    how = dict(front)
    for label, value, latents, view in steps:
        who.update(latents)
        how.update(view)
        wanted = rendered(viewer, Latents(**who), View(**how))
        shown = page.full_picture(lambda label=label, value=value: page.set(label, value))  # type: ignore[misc]
        assert is_same(shown, wanted), label


def test_an_orbit_turns_the_head_quickly_first_and_fully_when_still(
    viewer: Viewer, enter: Callable[[], RawPage]
) -> None:
    page = enter()
    page.set("Rendering pixels", 200)
    page.full_picture(lambda: None)
    count = len(page.pictures)
    turned = page.full_picture(
        lambda: page.look((2.7 * math.sin(0.6), 0.0, 2.7 * math.cos(0.6)), width=800, height=400)
    )
    wanted = rendered(viewer, Latents(), View(yaw=0.6, resolution=200, samples=SAMPLES))
    height, width, _ = turned.shape
    assert width == 2 * height
    assert is_same(turned[:, height // 2 : height // 2 + height], wanted)
    assert (turned[:, :10] == np.round(255 * np.array(viewer.generator.rendering.background))).all()
    assert page.formats[count] == "jpeg"
    page.wait_for(lambda: "frames per second" in page.status)


def test_buttons_step_through_seeds_and_hand_over_files(
    viewer: Viewer, enter: Callable[[], RawPage]
) -> None:
    page = enter()
    shown = page.full_picture(lambda: page.set("Go to", "Next"))
    page.look((0.0, 0.0, 2.7))
    shown = page.full_picture(lambda: page.set("Go to", "Next"))
    assert is_same(shown, rendered(viewer, Latents(seed=2), View(resolution=64, samples=SAMPLES)))
    for label, value in (("Video format", "gif"), ("Mesh cells", "64")):
        page.set(label, value)
    for label, name in (
        ("Picture (PNG)", "seed0002.png"),
        ("Turntable", "seed0002.gif"),
        ("Mesh", "seed0002.glb"),
    ):
        page.set(label, True)
        page.wait_for(lambda name=name: name in page.whole)  # type: ignore[misc]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(page.files["seed0002.png"]))), shown)
    gif: Any = Image.open(io.BytesIO(page.files["seed0002.gif"]))
    frames = []
    for index in (0, gif.n_frames // 4, 3 * gif.n_frames // 4, gif.n_frames - 1):
        gif.seek(index)
        frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert np.abs(frames[1] - frames[2]).mean() > 5
    assert np.array_equal(frames[0], frames[3])
    mesh: Any = trimesh.load(io.BytesIO(page.files["seed0002.glb"]), file_type="glb", force="mesh")
    assert len(mesh.faces) > 1000


def test_a_link_restores_what_is_seen(viewer: Viewer, enter: Callable[[], RawPage]) -> None:
    page = enter()
    for label, value in (("Seed", 12345), ("Blend", 0.25), ("Mix", True), ("View", "normals")):
        page.set(label, value)
    shown = page.full_picture(lambda: page.look((1.0, 0.5, 2.0), (0.1, 0.0, 0.0)))
    page.wait_for(lambda: "seed=12345" in page.status and "yaw=" in page.status)
    link = page.status.rpartition("[link to this view](")[2].removesuffix(")")
    for name in ("blend=0.25", "mix=1", "view=normals", "yaw=", "shift=0.1,0,0"):
        assert name in link
    with urllib.request.urlopen(viewer.address + link, timeout=30) as answer:
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    other = RawPage(viewer.address, additional_headers={"Cookie": f"a=b; {cookie}"})
    assert is_close(other.enter(), shown)
    assert other.wait_for(lambda: link in other.status)
    other.close()
    with urllib.request.urlopen(viewer.address, timeout=30) as answer:  # a plain address
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    plain = RawPage(viewer.address, additional_headers={"Cookie": cookie})
    plain.enter()
    assert plain.wait_for(lambda: "link to this view](/?)" in plain.status)
    plain.close()


def test_a_path_goes_through_its_keyframes() -> None:
    keys = [
        View(yaw=3.0, pitch=0.1, zoom=1.0),
        View(yaw=-3.0, pitch=0.3, zoom=4.0, shift=(0.1, 0.0, 0.0)),  # across the back
        View(yaw=-2.0, pitch=-0.2, zoom=2.0),
    ]
    path = downloads.camera_path(keys, 41)
    for view, key in zip((path[0], path[20], path[40]), keys, strict=True):
        assert math.cos(view.yaw - key.yaw) == pytest.approx(1)
        assert (view.pitch, view.zoom) == pytest.approx((key.pitch, key.zoom))
        assert view.shift == pytest.approx(key.shift)
    yaws = np.array([view.yaw for view in path])
    assert np.all(np.diff(yaws) > 0)
    assert np.abs(np.diff(yaws, 2)).max() < 0.02  # no corner


def test_keyframes_become_a_video(enter: Callable[[], RawPage]) -> None:
    page = enter()
    page.set("Video format", "gif")
    page.set("Path video", True)
    page.wait_for(lambda: "at least two keyframes" in page.status)
    for number, position in enumerate(((0.0, 0.0, 2.7), (2.0, 0.5, 1.8)), start=1):
        page.full_picture(lambda position=position: page.look(position))  # type: ignore[misc]
        page.set("Add keyframe", True)
        page.wait_for(lambda number=number: f"{number} of at most" in page.status)  # type: ignore[misc]
    page.set("Path video", True)
    page.wait_for(lambda: "seed0000.gif" in page.whole)
    gif: Any = Image.open(io.BytesIO(page.files["seed0000.gif"]))
    assert gif.n_frames == downloads.VIDEO_FRAMES
    page.set("Forget keyframes", True)
    page.wait_for(lambda: "No keyframes" in page.status)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_turntables_of_small_pictures_are_even_and_large_enough(kind: str) -> None:
    generator = tiny_generator()
    data = downloads.turntable(
        ViewRenderer(generator), Latents(), View("depth", resolution=9), kind
    )
    frames = iio.imread(data, extension=f".{kind}")
    assert frames.shape[1:] == (256, 256, 3)
    assert np.abs(frames[24].astype(int) - frames[72]).max() > 20


def test_a_mesh_can_have_a_texture() -> None:
    data = downloads.mesh(
        ViewRenderer(load_generator(SHIPPED_MODEL)), Latents(), "glb", 48, is_textured=True
    )
    mesh: Any = trimesh.load(io.BytesIO(data), file_type="glb", force="mesh")
    assert max(mesh.visual.material.baseColorTexture.size) == downloads.TEXTURE


def test_another_checkpoint_of_the_folder_is_shown(
    viewer: Viewer, enter: Callable[[], RawPage]
) -> None:
    page = enter()
    assert sorted(page.controls["File"]["props"]["options"]) == [
        "broken.pkl",
        "heads64.pkl",
        "other.pkl",
    ]
    shown = page.full_picture(lambda: page.set("File", "other.pkl"))
    page.wait_for(lambda: "other" in page.status)
    other = viewer.folder.load("other.pkl")
    assert shown.shape[0] == other.config.resolution
    page.set("File", "broken.pkl")
    page.wait_for(lambda: "broken" in page.status.split("·")[1])
    page.full_picture(lambda: page.set("Seed", 8))


def test_visitors_do_not_disturb_each_other(enter: Callable[[], RawPage]) -> None:
    first, second = enter(), enter()
    for page in (first, second):
        page.look((0.0, 0.0, 2.7))
    before = second.full_picture(lambda: second.set("Seed", 11))
    count = len(second.pictures)
    mine = first.full_picture(lambda: first.set("Seed", 12))
    first.full_picture(lambda: first.set("View", "depth"))
    first.full_picture(lambda: first.set("Samples per ray", 30))
    first.set("File", "other.pkl")
    first.wait_for(lambda: "other" in first.status)
    assert not np.array_equal(mine, before)
    assert len(second.pictures) == count
    second.full_picture(lambda: second.set("Seed", 13))
    again = second.full_picture(lambda: second.set("Seed", 11))
    assert is_same(again, before)


# --------------------------------------------------------------------------------------------------
# Hostile pages


NONSENSE: list[Any] = [
    None,
    "x" * 1000,
    -1e308,
    2**63 - 1,
    [],
    [1, "a"],
    {"a": 1},
    True,
    b"\0",
    [[1]],
    float("nan"),
    float("inf"),
]


def test_nonsense_in_controls_is_survived(enter: Callable[[], RawPage]) -> None:
    page = enter()
    labels = [
        label
        for label, message in page.controls.items()
        if "value" in message and label not in ("Mesh", "Turntable")
    ]
    for label in labels:
        for value in NONSENSE:
            page.set(label, value)
    for updates in (
        {"removed": True},
        {"update_cb": None},
        {"value": 1, "gui_api": 0},
        {"__class__": 1},
        {},
    ):
        page.update("Seed", updates)
    page.set("View", "image")
    page.set("Rendering pixels", 32)
    assert_alive(page)


def test_nonsense_in_cameras_ends_at_most_that_connection(enter: Callable[[], RawPage]) -> None:
    honest = enter()
    for value in NONSENSE[::2]:
        for camera in (
            {"position": value},
            {"look_at": value},
            {"position": [value] * 3},
            {"look_at": [value] * 3},
            {"width": value, "height": value},
        ):
            page = enter()
            with contextlib.suppress(ConnectionClosed):
                page.look(**camera)
                page.look(**camera)
            page.close()
    assert_alive(honest)


def test_cameras_beyond_all_bounds_are_brought_back(enter: Callable[[], RawPage]) -> None:
    page = enter()
    for number in (0.0, -1e308, 1e-300, math.nan, math.inf):
        page.look([number] * 3, (0.0, 0.0, 0.0), width=0, height=-5)
        page.look((0.0, 0.0, 2.7), [number] * 3, width=10**9, height=1)
    assert_alive(page)


def test_a_first_camera_of_nonsense_turns_only_its_page_away(
    viewer: Viewer, enter: Callable[[], RawPage]
) -> None:
    for value in NONSENSE:
        page = RawPage(viewer.address)
        page.look([value] * 3, value, width=value)
        page.close()
    assert_alive(enter())


def test_garbage_on_the_socket_ends_only_that_connection(
    viewer: Viewer, enter: Callable[[], RawPage]
) -> None:
    honest = enter()
    for garbage in (
        b"",
        b"\xc1",
        os.urandom(1000),
        b"\x80",
        "text",
        b"\x91" * 5000,
        b"\xdf\xff\xff\xff\xff",
    ):
        page = RawPage(viewer.address)
        page.look()
        page.socket.send(garbage)
        page._thread.join(PATIENCE)
        assert not page._thread.is_alive()
    honest.wait_for(lambda: len(viewer.sessions) == 1)
    assert_alive(honest)


def test_visitors_who_vanish_are_forgotten(viewer: Viewer, enter: Callable[[], RawPage]) -> None:
    threads = threading.active_count()
    pages = [RawPage(viewer.address) for _ in range(3)]
    for page in pages:
        page.enter()
        page.set("Rendering pixels", 256)
        page.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        page.socket.socket.shutdown(socket.SHUT_RDWR)
    honest = enter()
    honest.wait_for(lambda: len(viewer.sessions) == 1)
    honest.wait_for(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("session-")][1:]
    )
    assert_alive(honest)
    assert threading.active_count() < threads + 40  # the library keeps a pool


FORBIDDEN: list[dict[str, Any]] = [
    {"type": "ShareUrlRequest"},
    {"type": "ShareUrlDisconnect"},
    {"type": "FileTransferStartUpload", "transfer_uuid": "t", "size_bytes": 2},
    {"type": "FileTransferPart", "transfer_uuid": "t", "content": b"1"},
    {"type": "GuiUpdateMessage", "uuid": "u", "updates": {"value": 1, "removed": True}},
    {"type": "GuiUpdateMessage", "uuid": "u", "updates": [["value", 1]]},
    {"type": "GuiUpdateMessage", "uuid": "u"},
    {"type": ["ViewerCameraMessage"]},
    {"type": "Nope"},
]


def test_uploads_pass_within_limits_alone() -> None:
    encode, gate = msgspec.msgpack.encode, UploadGate()

    def passes(kind: str, key: Any = "a", **fields: Any) -> bool:
        message = encode({"type": f"FileTransfer{kind}", "transfer_uuid": key, **fields})
        return allowed_message(message, 0.5, gate) == message

    photo = {"size_bytes": 10, "part_count": 2}
    assert not passes("Part", content=b"1")  # of nothing
    for wrong in (
        {"size_bytes": LARGEST_PHOTO + 1},
        {"size_bytes": 0},
        {"size_bytes": 1.5},
        {"part_count": 11},
        {"part_count": 0},
        {"part_count": None},
        {"key": 3},
        {"key": ["a"]},
    ):
        assert not passes("StartUpload", **{**photo, **wrong})
    assert passes("StartUpload", **photo)
    assert not passes("StartUpload", **photo)  # the same again
    assert passes("Part", content=b"123456")
    assert not passes("Part", content="1234")
    assert passes("Part", content=b"1234")
    assert not passes("Part", content=b"1")  # more than was announced
    for number in range(MOST_PHOTOS - 1):
        assert passes("StartUpload", f"b{number}", **photo)
    assert not passes("StartUpload", "c", **photo)
    long = encode({"type": "ViewerCameraMessage", "near": "x" * LARGEST_MESSAGE})
    with pytest.raises(ValueError, match="too long"):
        allowed_message(long, 0.5, gate)


def test_a_page_can_do_nothing_but_look_and_move_controls(enter: Callable[[], RawPage]) -> None:
    """The library would open a tunnel to the Internet, and collect files, for whoever asks."""
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    for message in FORBIDDEN:
        assert allowed_message(encode(message), 0.5) is None
    value = encode({"type": "GuiUpdateMessage", "uuid": "u", "updates": {"value": 1}})
    assert allowed_message(value, 0.5) == value
    camera = {"type": "ViewerCameraMessage", "near": 7.0, "far": 9.0}
    passed = allowed_message(encode(camera), 0.5)
    assert passed is not None
    assert decode(passed) == {**camera, "near": 0.5}
    page = enter()
    for message in FORBIDDEN:
        page.socket.send(encode(message))
    assert_alive(page)


def test_the_librarys_own_port_shows_nothing_and_opens_no_tunnel(
    viewer: Viewer, enter: Callable[[], RawPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(viser.ViserServer, "request_share_url", opened.append)
    sneak = RawPage(f"http://127.0.0.1:{viewer.server.get_port()}")
    count = len(viewer.sessions)
    sneak.look()
    sneak.send("ShareUrlRequest")
    honest = enter()
    honest.send("ShareUrlRequest")
    assert_alive(honest)
    assert len(viewer.sessions) == count + 1
    assert not sneak.controls
    assert not sneak.pictures
    assert not opened
    sneak.close()


def test_the_page_is_titled_after_the_model(viewer: Viewer) -> None:
    for packed in ("identity", "gzip"):
        request = urllib.request.Request(viewer.address, headers={"Accept-Encoding": packed})
        with urllib.request.urlopen(request, timeout=30) as page:
            content = gzip.decompress(page.read()) if packed == "gzip" else page.read()
        assert b"<title>heads64.pkl - open-eg3d</title>" in content


@pytest.mark.parametrize(
    ("origin", "host", "is_welcome"),
    [
        (None, None, True),
        ("http://{address}", None, True),
        ("https://evil.example", None, False),
        ("http://evil.example:{port}", "evil.example:{port}", False),
        ("null", None, False),
    ],
)
def test_pages_of_other_sites_are_turned_away(
    viewer: Viewer, origin: str | None, host: str | None, is_welcome: bool
) -> None:
    address = viewer.address.removeprefix("http://")
    values = {"address": address, "port": address.split(":")[1]}
    headers = {"Host": host.format(**values)} if host else {}
    options: dict[str, Any] = {
        "origin": origin.format(**values) if origin else None,
        "additional_headers": headers,
    }
    if is_welcome:
        page = RawPage(viewer.address, **options)
        page.look()
        page.wait_for(lambda: "Mesh" in page.controls)
        page.close()
    else:
        with pytest.raises(InvalidStatus, match="403"):
            RawPage(viewer.address, **options)


def test_there_is_an_end_to_visitors(
    viewer: Viewer, enter: Callable[[], RawPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_SESSIONS", 1)
    enter()
    late = RawPage(viewer.address)
    late.look()
    late.wait_for(lambda: "Too many" in late.status)
    late.close()


PATHS = (
    "/../secret.pkl",
    "/%2e%2e/secret.pkl",
    "/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/other.pkl",
    "/models/heads64.pkl",
    "/%00",
    "/..\\..\\secret.pkl",
    "/_infra.py",
    "/../../_viser.py",
)


@pytest.mark.parametrize("path", PATHS)
def test_the_web_server_hands_out_its_page_only(viewer: Viewer, path: str) -> None:
    host, port = viewer.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b" ")[1] in (b"404", b"500", b"400")
    assert len(answer) < 2000
    with urllib.request.urlopen(viewer.address, timeout=PATIENCE) as page:
        assert b"<html" in page.read()


@pytest.mark.parametrize(
    "name", ["../secret.pkl", "/etc/passwd", "..\\secret.pkl", "", "other.pkl/../../secret.pkl"]
)
def test_no_page_opens_files_outside_the_folder(enter: Callable[[], RawPage], name: str) -> None:
    page = enter()
    page.set("File", name)
    page.wait_for(lambda: "no such checkpoint" in page.status)
    assert_alive(page)


def test_a_page_of_another_version_is_told(viewer: Viewer) -> None:
    with (
        connect(viewer.address.replace("http", "ws")) as page,
        pytest.raises(ConnectionClosed, match="Version"),
    ):
        page.recv(timeout=PATIENCE)


def assert_alive(page: RawPage) -> None:
    """It still gets other pictures for other seeds."""
    first = page.full_picture(lambda: page.set("Seed", 101))
    second = page.full_picture(lambda: page.set("Seed", 102))
    assert not np.array_equal(first, second)


# --------------------------------------------------------------------------------------------------
# The command


def test_named_latents_are_shown_and_edited() -> None:
    generator = load_generator(SHIPPED_MODEL)
    shape = (generator.num_ws, generator.w_dim)
    torch.manual_seed(1)
    entry = {"ws": torch.randn(shape), "camera": torch.zeros(25), "source": ""}
    generator.latents, generator.directions = {"ada": entry}, {"hair": torch.randn(shape)}
    folder = CheckpointFolder(None, load_generator)
    with run_viewer(generator, "tiny.pkl", folder, port=0, identity="ada") as viewer:
        page = RawPage(viewer.address)
        page.enter()
        shown = page.full_picture(lambda: page.look((0.0, 0.0, 2.7)))
        front = View(yaw=0.0, pitch=0.0, resolution=64, samples=SAMPLES)
        for control, value, latents in (
            (None, None, Latents(identity="ada")),
            ("hair", 2.0, Latents(identity="ada", edits=(("hair", 2.0),))),
            ("hair", 1e9, Latents(identity="ada", edits=(("hair", 4.0),))),
            ("Identity", "by seed", Latents(edits=(("hair", 4.0),))),
            ("hair", 0.0, Latents()),
        ):
            if control is not None:
                shown = page.full_picture(
                    lambda control=control, value=value: page.set(control, value)  # type: ignore[misc]
                )
            assert is_same(shown, rendered(viewer, latents, front)), (control, value)
        page.close()


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    network = write_generator(tmp_path / "tiny.pkl", 1)
    process = start("viewer.py", "--network", network, "--port", "0", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("Look at"))
    address = line.split()[2]
    assert address.startswith("http://127.0.0.1:")
    page = RawPage(address)
    page.enter()
    assert json.dumps(page.controls["Seed"]["props"]["max"]) == "999"
    page.close()
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.status == 0
    assert "Ended." in ended.out
    assert "Traceback" not in ended.err


def test_what_is_asked_wrongly_is_one_line(tmp_path: Path) -> None:
    network = str(write_generator(tmp_path / "tiny.pkl", 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        call(command.main, "--network", network, "--port", port).assert_refused(
            1, "cannot listen", port
        )
    call(command.main, "--network", network, "--host", "no such host").assert_refused(
        1, "cannot listen", "no such host"
    )
    call(command.main, "--network", network, "--port", "70000").assert_refused(2, "--port")
    call(command.main, "--network", network, "--folder", str(tmp_path / "none")).assert_refused(
        2, "--folder"
    )
    call(command.main, "--network", str(tmp_path / "none.pkl")).assert_refused(1, "none.pkl")
    call(command.main, "--network", network, "--latents", "ada").assert_refused(1, "no latents")


def test_a_generator_of_any_kind_can_be_looked_at() -> None:
    with run_viewer(
        tiny_generator("generator.pose_conditioning=true"),
        "tiny",
        CheckpointFolder(None, load_generator),
        port=0,
    ) as viewer:
        page = RawPage(viewer.address)
        page.enter()
        assert "File" not in page.controls
        first = page.full_picture(lambda: page.set("Conditioning yaw", 40.0))
        assert not np.array_equal(
            first, page.full_picture(lambda: page.set("Conditioning yaw", -40.0))
        )
        page.close()
