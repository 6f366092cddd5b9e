"""`make demo`: sizes that suit the machine, two stages, and a page that shows what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import demo
from dnnlib.console import UserError
from media.pictures.grids import save_png
from tests.browser import open_browser
from tests.tiny import write_dataset
from torch_utils.ops import library
from training.config.presets import make_config
from training.config.settings import set_option
from training.data.dataset import ImageDataset
from training.run.settings import check_run, enlarged, settle


@pytest.mark.parametrize("rung", demo.LADDER, ids=lambda rung: rung.name)
def test_every_rung_makes_networks_for_both_stages(rung: demo.Rung) -> None:
    config = make_config("heads", 32, "laptop")
    for assignment in demo.settings_of(rung, 32):
        set_option(config, assignment)
    settle(config, set())
    for processes in range(1, demo.MOST_PROCESSES + 1):
        if demo.BATCH % processes == 0:
            check_run(config, processes)
    config.model = enlarged(config.model, 64)
    for assignment in demo.settings_of(rung, 64):
        set_option(config, assignment)
    settle(config, {text.partition("=")[0] for text in demo.settings_of(rung, 64)})
    check_run(config, 1)
    assert (config.model.resolution, config.model.generator.plane_resolution) == (64, 64)


def test_the_ladder_goes_down_to_any_speed() -> None:
    speeds = [rung.slowest for rung in demo.LADDER]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] == 0


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({"wide": 31.0}, "wide"),
        ({"wide": 29.0, "narrow": 40.0}, "narrow"),
        ({"wide": 10.0, "narrow": 2.0}, "narrow"),
    ],
)
def test_slow_machines_get_narrow_networks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    speeds: dict[str, float],
    chosen: str,
) -> None:
    monkeypatch.setattr(demo, "images_a_second", lambda rung, *_: speeds[rung.name])
    monkeypatch.setattr(demo, "process_count", lambda: 2)
    assert demo.choose_rung().name == chosen
    told = capsys.readouterr().out
    assert f"about {2 * speeds[chosen]:.0f} pictures" in told
    assert f"{chosen} networks" in told


def test_speed_is_measured_by_training() -> None:
    assert 0.5 < demo.images_a_second(demo.LADDER[-1], "fp32", "cpu") < 1e5


def test_small_pictures_are_the_large_ones_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    shutil.copy(write_dataset(tmp_path / "large.zip", 3, 64), tmp_path / "heads64-3.zip")
    small, large = (ImageDataset(path) for path in demo.rendered_heads(3).values())
    assert torch.equal(small.labels, large.labels)
    reduced = large.read(range(3))[0].float().unflatten(-1, (32, 2)).mean(-1)
    reduced = reduced.unflatten(-2, (32, 2)).mean(-2)
    assert (small.read(range(3))[0] - reduced).abs().mean() < 3


def make_run(folder: Path, resolution: int, steps: list[int]) -> Path:
    """A run's folder with the files that the page is made from."""
    run = folder / "00000-heads"
    run.mkdir(parents=True)
    (run / "training_options.json").write_text(json.dumps({"model": {"resolution": resolution}}))
    rows = []
    for kimg in steps:
        picture = np.full((4 * resolution, 8 * resolution, 3), 40 + kimg, np.uint8)
        Image.fromarray(picture).save(run / f"fakes-{kimg:06d}.png")
        rows.append({"kimg": kimg, "Loss/G": 1.5, "Loss/D": 1.0, "Spread/pixels": 0.9})
    (run / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / f"network-snapshot-{steps[-1]:06d}.pkl").write_bytes(b"")
    return folder


def test_the_page_shows_both_stages_and_opens_from_disk(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "small", 32, [0, 5, 10]),
        make_run(tmp_path / "large", 64, [0, 5]),
    ]
    shown = []
    for name in ("shipped", "heads"):
        files = demo.Files(*(tmp_path / f"{name}.{ending}" for ending in ("png", "glb", "html")))
        for file in (files.grid, files.mesh):
            file.write_bytes(b"")
        files.avatar.write_text(f"<!doctype html><title>{name}</title><p>heads turn here</p>")
        shown.append(files)
    figure = demo.Figure("fid1k_full_lite0", {"fid1k_full_lite0": 42.5}, {}, demo.YARDSTICK)
    demo.write_page(tmp_path / "index.html", shown, [figure], runs)
    with open_browser() as browser:
        page = browser.open(tmp_path / "index.html")
        text = page.run("document.body.innerText")
        links = page.run(
            "[...document.querySelectorAll('section a, iframe')].map(e => e.href || e.src)"
        )
        sizes = page.run("[...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
        assert not page.errors
    assert "42.5" in text
    assert "64 pixels, after 5 thousand pictures" in text
    assert "--network" in text
    assert len(links) == 6
    for link in links:
        assert Path(link.removeprefix("file://")).exists()
    assert sizes == [[1024, 128]] * 5


def test_what_was_begun_is_continued_as_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another measurement of the machine, or other pictures, must not stop it."""
    calls: list[tuple[list[str], float]] = []
    data = {32: tmp_path / "heads32.zip", 64: tmp_path / "heads64.zip"}
    runs = [tmp_path / "small", tmp_path / "large"]

    def note(options: Sequence[str | Path], minutes: float) -> None:
        calls.append((list(map(str, options)), minutes))
        outdir = Path(options[list(options).index("--outdir") + 1])
        if not demo.has_checkpoint(outdir):
            make_run(outdir, 32, [5])

    monkeypatch.setattr(demo, "run_train", note)
    monkeypatch.setattr(demo, "choose_rung", lambda: demo.LADDER[0])
    demo.train(runs, data, 10)
    (first, _), (second, _) = calls
    assert "--data" in first
    assert "--init-from" in second
    shutil.rmtree(runs[1])  # stopped in the first stage
    demo.train(runs, data, 10)
    assert calls[2] == (["--outdir", str(runs[0]), "--resume", "latest"], 5)
    demo.train(runs, data, 10)
    assert calls[4] == (["--outdir", str(runs[1]), "--resume", "latest"], 10)


def test_a_program_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"train\.py ended with exit status 2"):
        demo.run_program(["train.py", "--no-such-option"])


def test_bad_options_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    for options in (["--minutes", "0"], ["--heads", "3"], ["--minutes", "nan"]):
        result = CliRunner().invoke(demo.main, ["--outdir", str(tmp_path / "d"), *options])
        assert result.exit_code == 2
    assert not (tmp_path / "d").exists()


def test_shipped_heads_are_seen_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = []

    def save(path: Path, picture: np.ndarray) -> None:
        kernels.append((path.name, library.use_kernels(torch.zeros(1))))
        save_png(path, picture)

    def compiling_fails(*_: object) -> None:
        raise UserError("no compiler")

    monkeypatch.setattr(demo, "save_png", save)
    monkeypatch.setattr(demo, "show", compiling_fails)
    told = CliRunner().invoke(demo.main, ["--outdir", str(tmp_path)])
    assert kernels == [("shipped.png", False)]
    assert Image.open(tmp_path / "shipped.png").size == (demo.VIEWS * 3 * 64, demo.IDENTITIES * 64)
    assert f"{tmp_path / 'shipped.png'}" in told.output
