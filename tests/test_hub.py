"""from_pretrained, save_pretrained and push_to_hub, on folders: no network is asked."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelHubMixin
from PIL import Image

from dnnlib.console import UserError
from metrics.options import MetricResult
from metrics.results import append_results
from open_eg3d import hub, load_generator
from open_eg3d.hub import PretrainedGenerator
from open_eg3d.model_card import Origin
from tests.tiny import differing, orbit_labels, tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
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


def test_model_card_tells_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    """Licence, data, figures and pictures, read again by the Hub's own library."""
    run = load_checkpoint(checkpoint)
    run.config.data.path, run.progress = "somewhere/cats64.zip", {"images": 1_234_000}
    save_checkpoint(checkpoint, run)
    figures = MetricResult("fid2k", {"fid2k_lite0": 12.345, "odd": float("nan")}, {}, 1.0)
    append_results(tmp_path, [figures], network=str(checkpoint))
    append_results(tmp_path, [MetricResult("is2k", {"is2k": 7.0}, {}, 1.0)], network="other.pkl")
    PretrainedGenerator.from_checkpoint(checkpoint).save_pretrained(
        tmp_path / "model", model_card_kwargs={"license": "cc-by-4.0", "what": "cats"}
    )
    card = huggingface_hub.ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "open-eg3d"
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "eg3d" in (card.data.tags or [])
    for told in ("cats as pictures", "cats64.zip", "1,234 thousand", "cc-by-4.0", "12.3"):
        assert told in card.text, told
    assert "is2k" not in card.text
    assert "somewhere" not in card.text
    with Image.open(tmp_path / "model" / "samples.png") as picture:
        assert picture.size == (4 * 32, 3 * 32)
    assert "(samples.png)" in card.text


def test_model_card_of_little_known(checkpoint: Path, tmp_path: Path) -> None:
    """It says what it does not know, and its code names the repository."""
    generator = PretrainedGenerator.from_checkpoint(checkpoint)
    generator.origin = Origin()
    card = generator.generate_model_card(name="somebody/heads")
    assert card.text.count("not told by the file") == 2
    assert "ask the author" in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert 'from_pretrained("somebody/heads")' in code
    generator.save_pretrained(tmp_path / "model")
    names: dict[str, Any] = {}
    exec(code.replace('"somebody/heads"', repr(str(tmp_path / "model"))), names)
    assert names["views"].image.shape[:2] == (4, 3)


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
    text = (remote / "somebody/heads" / "README.md").read_text()
    assert 'from_pretrained("somebody/heads")' in text
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
