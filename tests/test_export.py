"""export.py: the same pictures from a smaller file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import export
from open_eg3d import load_discriminator, load_generator
from tests.tiny import call, finish, orbit_labels, start, tiny_config
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.trainer import Trainer


@pytest.fixture
def network(tmp_path: Path) -> Path:
    trainer = Trainer(tiny_config("data.path=/some/where/heads.zip"), orbit_labels(8), torch.device("cpu"))
    state = trainer.state_dict()
    save_checkpoint(tmp_path / "run.pkl", Checkpoint(trainer.config, **state, cameras={"radius": 2.7, "pivot": (0.0, 0.0, 0.0)}))
    return tmp_path / "run.pkl"


def test_the_same_pictures_from_a_smaller_file(network: Path, tmp_path: Path) -> None:
    dest = tmp_path / "small.pkl"
    ended = finish(start("export.py", "--network", network, "--dest", dest)).assert_done()
    assert str(dest) in ended.out
    assert dest.stat().st_size < network.stat().st_size / 2
    first, second = load_generator(network), load_generator(dest)
    z, c = torch.randn(1, first.z_dim), orbit_labels(1)
    assert torch.equal(first(z, c).image, second(z, c).image)
    assert first.cameras == second.cameras
    assert load_checkpoint(dest).config.data.path == "heads.zip"
    assert b"/some/where" not in dest.read_bytes()


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    bare = tmp_path / "bare.pkl"
    save_checkpoint(bare, Checkpoint(tiny_config()))
    for source, words in ((tmp_path / "text", "text"), (tmp_path / "none.pkl", "none.pkl"), (bare, "G_ema")):
        call(export.main, "--network", str(source), "--dest", str(tmp_path / "out.pkl")).assert_refused(1, words)
        assert not (tmp_path / "out.pkl").exists()


def test_nothing_is_overwritten_unasked(network: Path, tmp_path: Path) -> None:
    dest = tmp_path / "other.pkl"
    dest.write_bytes(b"mine")
    call(export.main, "--network", str(network), "--dest", str(dest)).assert_refused(1, "exists already")
    assert dest.read_bytes() == b"mine"
    call(export.main, "--network", str(network), "--dest", str(network), "--overwrite").assert_refused(1, "exists already")
    call(export.main, "--network", str(network), "--dest", str(dest), "--overwrite").assert_done()
    with pytest.raises(Exception, match="discriminator"):
        load_discriminator(dest)
