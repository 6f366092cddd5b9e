"""Files of Gaussians, read by others: PlayCanvas' converter, Khronos' validator, three.js."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from dnnlib.console import UserError
from media.splats.files import SPLAT_FORMATS, save_splats
from media.splats.splats import Splats
from tests.browser import SOFTWARE_WEBGL, open_browser
from tests.media.meshes.test_files import validate
from tests.media.splats.clouds import CAMERAS, JUDGES, ball, convert

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes to those of OpenGL
TYPES: dict[int, np.dtype[Any]] = {5126: np.dtype("<f4"), 5121: np.dtype("u1")}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
SIZE = 256


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splats")
    for ending in SPLAT_FORMATS.values():
        save_splats(folder / f"ball{ending}", ball())
    return folder


def csv_columns(path: Path) -> dict[str, np.ndarray]:
    names, *rows = path.read_text().splitlines()
    values = np.array([[float(word) for word in row.split(",")] for row in rows])
    return dict(zip(names.split(","), values.T, strict=True))


def glb_attributes(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    description, data = json.loads(content[20 : 20 + length]), content[28 + length :]
    (primitive,) = description["meshes"][0]["primitives"]
    found = {}
    for name, index in primitive["attributes"].items():
        entry = description["accessors"][index]
        start = description["bufferViews"][entry["bufferView"]].get("byteOffset", 0)
        width = WIDTHS[entry["type"]]
        values = np.frombuffer(data, TYPES[entry["componentType"]], entry["count"] * width, start)
        found[name] = values.reshape(-1, width)
    return description, found


def same_turns(first: np.ndarray, second: np.ndarray) -> float:
    """Smallest absolute cosine of half the angle between quaternions."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float((np.abs((first * second).sum(axis=1)) / lengths).min())


def test_the_converter_reads_ply(files: Path, tmp_path: Path) -> None:
    """Its numbers are those of the cloud, turned by 180 degrees around z."""
    cloud, found = ball(), csv_columns(convert(files / "ball.ply", tmp_path / "a.csv"))
    half_turn = Rotation.from_euler("z", 180, degrees=True)
    where = np.stack([found[name] for name in "xyz"], axis=1)
    np.testing.assert_allclose(where, half_turn.apply(cloud.positions.numpy()), atol=1e-6)
    scales = np.exp(np.stack([found[f"scale_{i}"] for i in range(3)], axis=1))
    np.testing.assert_allclose(scales, cloud.scales, rtol=1e-5)
    alpha = 1 / (1 + np.exp(-found["opacity"]))
    np.testing.assert_allclose(alpha, cloud.opacities, atol=1e-5)
    colors = 0.5 + 0.28209479177387814 * np.stack([found[f"f_dc_{i}"] for i in range(3)], axis=1)
    np.testing.assert_allclose(colors, cloud.colors, atol=1e-5)
    turns = Rotation.from_quat(cloud.rotations.numpy(), scalar_first=True)
    ours = (half_turn * turns).as_quat(scalar_first=True)
    assert same_turns(np.stack([found[f"rot_{i}"] for i in range(4)], axis=1), ours) > 1 - 1e-6


def test_the_converter_makes_of_ply_the_same_glb(files: Path, tmp_path: Path) -> None:
    _, ours = glb_attributes(files / "ball.glb")
    description, theirs = glb_attributes(convert(files / "ball.ply", tmp_path / "a.glb"))
    assert description["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert set(ours) == set(theirs)
    for name in set(ours) - {"COLOR_0", "KHR_gaussian_splatting:ROTATION"}:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-6, err_msg=name)
    name = "KHR_gaussian_splatting:ROTATION"
    assert same_turns(ours[name], theirs[name]) > 1 - 1e-6


def test_the_converter_makes_of_splat_the_same_ply(files: Path, tmp_path: Path) -> None:
    """Within 8 bits; the order is that of size and opacity."""
    ply = csv_columns(convert(files / "ball.ply", tmp_path / "a.csv"))
    splat = csv_columns(convert(files / "ball.splat", tmp_path / "b.csv"))
    cloud = ball()
    order = np.argsort(-(cloud.scales.prod(dim=1) * cloud.opacities).numpy(), kind="stable")
    for name in ("x", "y", "z", "scale_0", "scale_1", "scale_2"):
        np.testing.assert_allclose(splat[name], ply[name][order], atol=1e-5, err_msg=name)
    for i in range(3):
        step = 1 / 255 / 0.28209479177387814
        np.testing.assert_allclose(splat[f"f_dc_{i}"], ply[f"f_dc_{i}"][order], atol=0.51 * step)
    first, second = (
        1 / (1 + np.exp(-values)) for values in (splat["opacity"], ply["opacity"][order])
    )
    np.testing.assert_allclose(first, second, atol=0.51 / 255)
    turns = [np.stack([f[f"rot_{i}"] for i in range(4)], axis=1) for f in (splat, ply)]
    assert same_turns(turns[0], turns[1][order]) > 1 - 1e-4


def test_the_validator_knows_all_but_the_extension(files: Path) -> None:
    messages = validate(files / "ball.glb")["issues"]["messages"]
    assert {message["code"] for message in messages} <= {
        "UNSUPPORTED_EXTENSION",
        "MESH_PRIMITIVE_INVALID_ATTRIBUTE",
    }, messages
    for message in messages:
        assert re.search("KHR_gaussian_splatting", message["message"] + message["pointer"])


def test_one_gaussian_at_every_bound(tmp_path: Path) -> None:
    """Opacities of 0 and 1, colours at their ends."""
    cloud = Splats(
        torch.zeros(2, 3),
        torch.ones(2, 3),
        torch.eye(4)[:2],
        torch.tensor([0.0, 1.0]),
        torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
    )
    for ending in SPLAT_FORMATS.values():
        save_splats(tmp_path / f"a{ending}", cloud)
    found = csv_columns(convert(tmp_path / "a.ply", tmp_path / "a.csv"))
    assert all(np.isfinite(values).all() for values in found.values())
    rows = np.frombuffer((tmp_path / "a.splat").read_bytes(), "u1").reshape(2, 32)
    assert rows[0, 24:28].tolist() == [255, 0, 255, 255]
    assert rows[1, 24:28].tolist() == [0, 255, 0, 0]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.ply, \.splat or \.glb"):
        save_splats(tmp_path / "a.obj", ball(10))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# In a browser

PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="importmap">
{"imports": {"three": "./three/build/three.module.js",
             "three/addons/": "./three/examples/jsm/",
             "spark": "./@sparkjsdev/spark/dist/spark.module.js"}}
</script><script type="module">
import * as THREE from "three";
import { SparkRenderer, SplatMesh } from "spark";
const renderer = new THREE.WebGLRenderer({preserveDrawingBuffer: true, antialias: false});
renderer.setPixelRatio(1);
renderer.setSize(SIZE, SIZE, false);
const scene = new THREE.Scene();
scene.add(new SparkRenderer({renderer}));
const cloud = new SplatMesh({url: "FILE"});
cloud.quaternion.set(0, 0, 1, 0);  // the file's axes: y down
scene.add(cloud);
const camera = new THREE.PerspectiveCamera(FOV, 1, 0.1, 100);
camera.matrixAutoUpdate = false;
camera.matrix.set(MATRIX);
camera.matrixWorldNeedsUpdate = true;
await cloud.initialized;
window.picture = () => renderer.domElement.toDataURL("image/png");
renderer.render(new THREE.Scene(), camera);
const empty = picture();
let last = empty;
window.unchanged = 0;  // frames since the picture changed, once anything is seen
renderer.setAnimationLoop(() => {
  renderer.render(scene, camera);
  const now = picture();
  unchanged = now === last && now !== empty ? unchanged + 1 : 0;
  last = now;
});
</script>"""


@pytest.fixture(scope="module")
def site(files: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the renderer and the files, and its address."""
    for name in ("three", "@sparkjsdev"):
        (files / name).symlink_to(JUDGES / name)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield files, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def spark_picture(site: tuple[Path, str], name: str, label: torch.Tensor) -> np.ndarray:
    """What three.js shows of a file: (SIZE, SIZE, 3) in [0, 1]."""
    folder, address = site
    matrix = label[:16].double().reshape(4, 4).numpy() @ FLIP
    numbers = {
        "SIZE": str(SIZE),
        "FILE": name,
        "FOV": str(np.degrees(2 * np.arctan(0.5 / float(label[16])))),
        "MATRIX": ", ".join(str(value) for value in matrix.flatten()),
    }
    page_file = folder / "page.html"
    page_file.write_text(re.sub("SIZE|FILE|FOV|MATRIX", lambda found: numbers[found[0]], PAGE))
    with open_browser(SOFTWARE_WEBGL) as browser:
        page = browser.open(f"{address}/{page_file.name}", 400, 400)
        # the order of Gaussians comes from a worker
        page.wait_until("window.unchanged >= 8")
        url = page.run("picture()")
        assert not page.errors
    content = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(first - second).mean()))


@pytest.mark.waits
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no browser")
@pytest.mark.parametrize("name", ["ball.ply", "ball.splat"])
def test_three_js_shows_what_we_render(site: tuple[Path, str], name: str) -> None:
    label = CAMERAS.label(0.4, 0.2)
    ours = ball().render(label, SIZE)[0].movedim(0, -1).numpy()
    theirs = spark_picture(site, name, label)
    assert psnr(ours, theirs) > 40
    assert psnr(ours[:, ::-1], theirs) < 20
