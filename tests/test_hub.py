"""from_pretrained, save_pretrained and push_to_hub, on folders: no network is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelHubMixin

from dnnlib.console import UserError
from open_eg3d import hub, load_generator
from open_eg3d.hub import PretrainedGenerator
from tests.tiny import differing, orbit_labels, tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.networks.generator import Generator


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = tiny_config()
    torch.manual_seed(0)
    cameras = CameraSummary.from_labels(orbit_labels(9)).to_dict()
    save_checkpoint(
        tmp_path / "ckpt.pkl",
        Checkpoint(config, G_ema=Generator(config.model).state_dict(), cameras=cameras),
    )
    return tmp_path / "ckpt.pkl"


def assert_same(first: Generator, second: Generator) -> None:
    assert differing(dict(first.state_dict()), dict(second.state_dict())) == []
    assert first.config == second.config
    assert differing(first.cameras, second.cameras) == []
    z, c = torch.randn(1, first.z_dim), orbit_labels(1)
    assert torch.equal(first(z, c).image, second(z, c).image)


def test_there_and_back_through_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    first = PretrainedGenerator.from_checkpoint(checkpoint)
    assert isinstance(first, ModelHubMixin)
    assert first.save_pretrained(tmp_path / "model") is None
    second = PretrainedGenerator.from_pretrained(tmp_path / "model")
    assert type(second) is PretrainedGenerator
    assert not second.training
    assert not any(parameter.requires_grad for parameter in second.parameters())
    assert_same(first, second)
    assert_same(load_generator(checkpoint), load_generator(tmp_path / "model"))


def test_model_card_says_the_licence(checkpoint: Path, tmp_path: Path) -> None:
    PretrainedGenerator.from_checkpoint(checkpoint).save_pretrained(
        tmp_path / "model", model_card_kwargs={"license": "cc-by-4.0"}
    )
    card = huggingface_hub.ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "open-eg3d"
    assert "eg3d" in (card.data.tags or [])


def test_what_is_pushed_is_what_comes_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is a folder here: its upload copies files into it, its download hands it out."""
    remote = tmp_path / "remote"

    def create_repo(_: HfApi, repo_id: str, **__: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(_: HfApi, *, repo_id: str, folder_path: Path, **__: Any) -> str:
        shutil.copytree(folder_path, remote / repo_id)
        return f"uploaded {repo_id}"

    def snapshot_download(
        name: str, *, revision: str | None, allow_patterns: list[str], **_: Any
    ) -> str:
        assert revision == "v1"
        assert set(allow_patterns) >= {"config.json", "model.safetensors"}
        return str(remote / name)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    first = PretrainedGenerator.from_checkpoint(checkpoint)
    assert first.push_to_hub("somebody/heads") == "uploaded somebody/heads"
    assert {path.name for path in (remote / "somebody/heads").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert_same(first, PretrainedGenerator.from_pretrained("somebody/heads", revision="v1"))


def test_what_cannot_be_fetched_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder here nor"):
        PretrainedGenerator.from_pretrained("no/such/name")
    with pytest.raises(UserError, match="cannot fetch") as caught:
        PretrainedGenerator.from_pretrained(
            "somebody/heads", local_files_only=True, cache_dir=tmp_path
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"config\.json"):
        PretrainedGenerator.from_pretrained(tmp_path)
