"""Named latents and directions survive every form of a file; files without them read as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import export
import open_eg3d
from dnnlib.console import UserError
from open_eg3d import load_generator
from open_eg3d.hub import PretrainedGenerator
from tests.tiny import call, differing, orbit_labels, tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.checkpoints.identities import NAME, unique_names
from training.inversion.encoder import Encoder
from training.networks.generator import Generator


def identities(generator: Generator) -> dict[str, Any]:
    shape = (generator.num_ws, generator.w_dim)
    entries = {
        name: {"ws": torch.randn(shape), "camera": orbit_labels(1)[0], "source": source}
        for name, source in (("ada", "ada lovelace.jpg"), ("b-2", ""))
    }
    return {"latents": entries, "directions": {"hair": torch.randn(shape)}}


def write(path: Path, cameras_are_known: bool = True, **sections: Any) -> Path:
    torch.manual_seed(0)
    generator = Generator(tiny_config().model)
    known = CameraSummary.from_labels(orbit_labels(9)).to_dict()
    cameras = known if cameras_are_known else None
    sections = sections or identities(generator)
    state = generator.state_dict()
    save_checkpoint(path, Checkpoint(tiny_config(), G_ema=state, cameras=cameras, **sections))
    return path


def assert_kept(first: Generator, second: Generator) -> None:
    for name in ("latents", "directions", "encoder"):
        assert getattr(first, name)
        assert differing(getattr(first, name), getattr(second, name)) == []


def test_there_and_back(tmp_path: Path) -> None:
    generator = Generator(tiny_config().model)
    encoder = Encoder(generator.num_ws, generator.w_dim).state_dict()
    path = write(tmp_path / "a.pkl", **identities(generator), encoder=encoder)
    source = load_generator(path)
    assert list(source.latents) == ["ada", "b-2"]
    call(export.main, "--network", tmp_path / "a.pkl", "--dest", tmp_path / "b").assert_done()
    call(export.main, "--network", tmp_path / "b", "--dest", tmp_path / "c.pkl").assert_done()
    hub = PretrainedGenerator.from_checkpoint(tmp_path / "c.pkl")
    hub.save_pretrained(tmp_path / "d")
    for name in ("b", "c.pkl", "d"):
        assert_kept(source, load_generator(tmp_path / name))
    assert_kept(source, PretrainedGenerator.from_pretrained(tmp_path / "d"))


def test_files_without_them_are_as_they_were(tmp_path: Path) -> None:
    write(tmp_path / "a.pkl", latents={}, directions={}, encoder={})
    assert {"latents", "directions", "encoder"}.isdisjoint(
        torch.load(tmp_path / "a.pkl", weights_only=True)
    )
    assert load_checkpoint(tmp_path / "a.pkl").latents == {}
    call(export.main, "--network", tmp_path / "a.pkl", "--dest", tmp_path / "b").assert_done()
    assert not (tmp_path / "b" / "identities.safetensors").exists()
    assert "latents" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert load_generator(tmp_path / "b").latents == {}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("latents", {"ws": torch.zeros(3, 8)}),
        ("latents", {"ws": torch.full((6, 8), float("nan"))}),
        ("latents", {"camera": torch.zeros(24)}),
        ("latents", {"source": 3}),
        ("latents", {"more": 1}),
        ("directions", torch.zeros(2, 2)),
    ],
)
def test_others_are_refused(kind: str, change: Any, tmp_path: Path) -> None:
    generator = Generator(tiny_config().model)
    sections = identities(generator)
    assert sections["latents"]["ada"]["ws"].shape == (6, 8)
    if kind == "latents":
        sections[kind]["ada"].update(change)
    else:
        sections[kind]["hair"] = change
    with pytest.raises(UserError, match="damaged or of another network"):
        load_generator(write(tmp_path / "a.pkl", **sections))


@pytest.mark.parametrize("kind", ["latents", "directions"])
def test_names_lead_nowhere(kind: str, tmp_path: Path) -> None:
    """Neither written nor read."""
    source = load_generator(write(tmp_path / "a.pkl"))
    content = torch.load(tmp_path / "a.pkl", weights_only=True)
    for holder in (content[kind], getattr(source, kind)):
        holder["../x"] = next(iter(holder.values()))
    torch.save(content, tmp_path / "b.pkl")
    with pytest.raises(UserError, match=rf"{kind}.*'\.\./x'.*letters, digits"):
        load_generator(tmp_path / "b.pkl")
    for name in ("c.pkl", "d"):
        with pytest.raises(UserError, match=rf"{kind}.*'\.\./x'.*letters, digits"):
            open_eg3d.export(source, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_names_are_made_plain_and_differ() -> None:
    texts = ["../../x", "Ada Lovelace (1)", "ünï", "", ".hidden", "a" * 200, "-x", "X"]
    names = unique_names([*texts, *texts])
    assert all(NAME.fullmatch(name) for name in names)
    assert len({name.lower() for name in names}) == len(names)  # some disks know no capitals
    assert unique_names(["photo-1.b", "a", "a", "a-2"]) == ["photo-1.b", "a", "a-2", "a-2-2"]
    assert unique_names(["two-1"], ["two-1"]) == ["two-1-2"]


def test_a_folder_that_lacks_a_part_is_told(tmp_path: Path) -> None:
    call(export.main, "--network", write(tmp_path / "a.pkl"), "--dest", tmp_path / "b")
    content = json.loads((tmp_path / "b" / "config.json").read_text())
    del content["latents"]["ada"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="latents without source or camera"):
        load_generator(tmp_path / "b")
