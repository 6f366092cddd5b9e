"""calc_metrics.py --report: the real command, and its page as a browser shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
from tests.browser import Browser, Page, open_browser
from tests.tiny import Ended, call, finish, orbit_labels, start, tiny_config, write_dataset
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.networks.generator import Generator

pytestmark = pytest.mark.waits

SIZE, REALS, FAKES = 32, 30, 20
METRICS = (
    "--metrics",
    "fid12_full,relief2",
    "--detector",
    "lite0",
    "--report-fakes",
    str(FAKES),
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder with data beside it, and a cache of its own."""
    path = tmp_path_factory.mktemp("run")
    config = tiny_config()
    config.model.resolution = SIZE
    config.model.rendering.density_gain = 30.0
    torch.manual_seed(3)
    cameras = CameraSummary.from_labels(orbit_labels(20))
    state = Generator(config.model).state_dict()
    save_checkpoint(
        path / "network-snapshot-000012.pkl",
        Checkpoint(config=config, G_ema=state, cameras=cameras.to_dict()),
    )
    write_dataset(path / "blots.zip", REALS, SIZE)
    lines = [
        {"kimg": k, "Loss/G": 2 - k / 20, "Loss/D": 1.0, "Depth/spread": 0.1}
        for k in range(4, 13, 4)
    ]
    (path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_EG3D_CACHE", str(path / "cache"))
        # compiled operators would be built anew in a fresh cache
        patch.setenv("OPEN_EG3D_OPS", "reference")
        yield path


@pytest.fixture(scope="module")
def page(folder: Path, browser: Browser) -> Page:
    """The page of the whole command, opened without a network."""
    arguments = (
        "--network",
        folder / "network-snapshot-000012.pkl",
        "--data",
        folder / "blots.zip",
        "--mirror",
        *METRICS,
    )
    finish(start("calc_metrics.py", *arguments, "--report", folder / "report.html")).assert_done()
    return browser.open(folder / "report.html", 1100)


def report(*arguments: str | Path) -> Ended:
    return call(calc_metrics.main, *METRICS, *arguments)


def test_all_is_shown_and_nothing_is_loaded(page: Page, folder: Path, tmp_path: Path):
    assert page.errors == []
    assert page.requests == [(folder / "report.html").as_uri()]
    state = page.run(
        "[...document.images].map(i => [i.complete, i.naturalWidth,"
        " i.getBoundingClientRect().width, i.alt])"
    )
    assert all(
        complete and natural > 0 and shown > 0 and alt for complete, natural, shown, alt in state
    )
    assert len(state) == 2 + 3 + 16 + 6 * 5
    text = page.run("document.body.innerText")
    (line,) = (
        json.loads(text)
        for text in (folder / "metric-fid12_full_lite0.jsonl").read_text().splitlines()
    )
    wanted = [
        f"{line['results']['fid12_full_lite0']:.5g}",
        "Numbers",
        "Curves",
        "Samples",
        "Views, depth and normals",
    ]
    wanted += ["Most and least realistic"]
    wanted += [
        "Nearest training pictures",
        "relief2_relief",
        "60 poses of the data",
        "lite0",
        "truncation psi",
        line["protocol"]["data_hash"],
    ]
    wanted += [
        "Losses",
        "Spread of depth",
        "blots.zip",
        "seed 0",
        "all 60 real pictures",
        "times as far",
    ]
    assert [words for words in wanted if words not in text] == []
    assert page.run("document.title") == "Metrics of network-snapshot-000012.pkl"
    with Image.open(page.screenshot(tmp_path / "page.png")) as shot:
        assert np.asarray(shot.convert("L")).std() > 20


def test_strips_hold_picture_rendering_depth_and_normals(page: Page):
    """Four rows of seven views; where something is, normals are not grey, which depth is."""
    script = """(() => {
        const i = [...document.images].find(i => i.alt.includes('normals'));
        const c = new OffscreenCanvas(i.naturalWidth, i.naturalHeight).getContext('2d');
        c.drawImage(i, 0, 0);
        const {data} = c.getImageData(0, 0, i.naturalWidth, i.naturalHeight);
        return [i.naturalWidth, i.naturalHeight, ...data];
    })()"""
    width, height, *values = page.run(script)
    assert (width, height) == (7 * SIZE, 4 * SIZE)
    strip = np.array(values, dtype=int).reshape(4, SIZE, width, 4)[..., :3]
    depth, normals = np.ptp(strip, axis=-1)[2:]
    assert depth.max() == 0
    assert normals.max() > 30


def test_nothing_sticks_out_on_a_phone(page: Page):
    for width in (390, 1100):
        page.resize(width, 800)
        assert page.run("document.documentElement.scrollWidth") <= width


def test_pictures_are_those_of_the_seeds(page: Page, folder: Path):
    """The nearest real picture of a sample, as the page holds it, is one of the data's."""
    script = """(async () => {
        const i = [...document.images].find(i => i.alt.startsWith('Training picture'));
        const c = new OffscreenCanvas(i.naturalWidth, i.naturalHeight).getContext('2d');
        c.drawImage(i, 0, 0);
        return [i.alt, ...c.getImageData(0, 0, i.naturalWidth, i.naturalHeight).data];
    })()"""
    alt, *values = page.run(script)
    shown = np.array(values, dtype=np.uint8).reshape(SIZE, SIZE, 4)[..., :3]
    dataset = calc_metrics.open_data(str(folder / "blots.zip"), mirror=True, check=True)
    names = [Path(name).name for name in dataset.file_names]
    place = names.index(alt.split()[2]) + ("mirrored" in alt) * len(names)
    assert np.array_equal(shown, dataset.read([place])[0][0].permute(1, 2, 0).numpy())


def test_without_data_the_page_says_what_is_missing(folder: Path, browser: Browser, tmp_path: Path):
    network = folder / "network-snapshot-000012.pkl"
    path = tmp_path / "new" / "report.html"
    call(
        calc_metrics.main,
        "--network",
        network,
        "--metrics",
        "relief2",
        "--outdir",
        tmp_path,
        "--report",
        path,
    ).assert_done()
    shown = browser.open(path)
    assert shown.errors == []
    text = shown.run("document.body.innerText")
    assert "Not computed: it takes --data" in text
    assert "Losses" in text  # of the run that the network lies in


def test_processes_write_the_same_page(folder: Path, tmp_path: Path, page: Page):
    arguments = (
        "--network",
        folder / "network-snapshot-000012.pkl",
        "--data",
        folder / "blots.zip",
        "--mirror",
        *METRICS,
    )
    finish(
        start(
            "calc_metrics.py",
            *arguments,
            "--procs",
            "2",
            "--outdir",
            tmp_path,
            "--report",
            tmp_path / "report.html",
        )
    ).assert_done()
    shown = page.browser.open(tmp_path / "report.html")
    script = "[...document.images].map(i => i.alt + i.src)"
    first, second = page.run(script), shown.run(script)
    assert first == second


def test_wrong_places(folder: Path, tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    network = (
        "--network",
        folder / "network-snapshot-000012.pkl",
        "--data",
        folder / "blots.zip",
        "--outdir",
        tmp_path / "out",
    )
    report(*network, "--report", tmp_path / "text" / "report.html").assert_refused(1, "text")
    report(*network, "--report", tmp_path).assert_refused(2, "--report")
    report(*network, "--report", tmp_path / "a.html", "--report-fakes", "0").assert_refused(
        2, "--report-fakes"
    )
    report(*network, "--report", tmp_path / "a.html", "--seed", str(2**32 - 16)).assert_refused(
        2, "--seed"
    )
    assert not list(tmp_path.rglob("*.html"))
