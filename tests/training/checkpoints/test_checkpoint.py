"""Our file format: what is saved comes back, nothing half-written stays, and every wrong file is
answered with one line.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.console import UserError
from tests.released_layout import Layout, write_snapshot
from training.checkpoints.checkpoint import (
    FORMAT_NAME,
    FORMAT_VERSION,
    Checkpoint,
    build_discriminator,
    build_generator,
    load_checkpoint,
    load_state,
    load_weights,
    save_checkpoint,
)
from training.checkpoints.released.interop import Weights
from training.config.settings import Config, GeneratorConfig, ModelConfig, SuperResolutionConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

KEYS = [
    "format",
    "config",
    "progress",
    "G",
    "D",
    "G_ema",
    "optimizers",
    "augment",
    "rng",
    "cameras",
]
ROOT = Path(__file__).parents[3]


def small_model() -> ModelConfig:
    model = ModelConfig(resolution=32)
    model.generator = GeneratorConfig(
        z_dim=4,
        w_dim=5,
        mapping_layers=1,
        plane_resolution=8,
        plane_channels=3,
        channel_base=32,
        channel_max=4,
        decoder_hidden=4,
    )
    model.superresolution = SuperResolutionConfig(channels=(4, 4))
    model.discriminator.channel_base, model.discriminator.channel_max = 32, 4
    return model


def small_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = Config(model=small_model())
    networks = {
        "G": Generator(config.model),
        "D": Discriminator(config.model),
        "G_ema": Generator(config.model),
    }
    optimizer = torch.optim.Adam(networks["D"].parameters(), lr=0.1)
    sum(parameter.square().sum() for parameter in networks["D"].parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return Checkpoint(
        config,
        progress={"images": 64000, "kimg": 64.0, "done": False, "name": "run", "nothing": None},
        G=networks["G"].state_dict(),
        D=networks["D"].state_dict(),
        G_ema=networks["G_ema"].state_dict(),
        optimizers={"D": optimizer.state_dict()},
        augment={"p": torch.tensor(0.25)},
        rng={"torch": torch.get_rng_state()},
        cameras={"radius": 2.7, "pivot": [0.0, 0.0, 0.2], "poses": torch.zeros(3, 25)},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "network-snapshot-000064.pkl"
    save_checkpoint(path, small_checkpoint())
    return path


def assert_same(first: Any, second: Any) -> None:
    """Equal values and types, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert type(first) is type(second)
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert type(first) is type(second)
        assert first == second


def one_line(path: Path) -> str:
    """What loading `path` is answered with."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    with pytest.raises(UserError):
        load_weights(path)
    return message


# --------------------------------------------------------------------------------------------------
# Round trip


def test_everything_comes_back(saved: Path) -> None:
    expected, loaded = small_checkpoint(), load_checkpoint(saved)
    assert loaded.config == expected.config
    for item in dataclasses.fields(Checkpoint):
        if item.name != "config":
            assert_same(dict(getattr(expected, item.name)), getattr(loaded, item.name))


def test_file_opens_without_this_program(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert list(content) == KEYS
    assert content["format"] == {"name": FORMAT_NAME, "version": FORMAT_VERSION}
    assert content["config"]["model"]["generator"]["z_dim"] == 4
    assert "backbone.synthesis.b4.const" in content["G"]


def test_optimizer_state_goes_back_into_an_optimizer(saved: Path) -> None:
    discriminator = Discriminator(small_model())
    optimizer = torch.optim.Adam(discriminator.parameters())
    optimizer.load_state_dict(load_checkpoint(saved).optimizers["D"])
    assert_same(optimizer.state_dict(), small_checkpoint().optimizers["D"])


def test_any_name_and_a_new_folder(tmp_path: Path) -> None:
    for name in ("a.pkl", "b.pt", "c", "name with spaces.zip", "runs/new/ckpt.pkl"):
        save_checkpoint(tmp_path / name, small_checkpoint())
        assert load_checkpoint(tmp_path / name).progress["images"] == 64000


def test_parameters_and_views_are_stored_small(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    large[3] = 7
    tensors = {
        "view": large[:4],
        "parameter": nn.Parameter(torch.ones(2)),
        "wide": torch.ones(1).expand(9),
    }
    save_checkpoint(tmp_path / "c.pkl", Checkpoint(Config(), augment=tensors))
    assert (tmp_path / "c.pkl").stat().st_size < 50_000
    augment = load_checkpoint(tmp_path / "c.pkl").augment
    assert augment["view"].tolist() == [0, 0, 0, 7]
    assert type(augment["parameter"]) is torch.Tensor
    assert augment["wide"].tolist() == [1] * 9


def test_memory_format_survives(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c.pkl", Checkpoint(Config(), augment={"x": tensor}))
    loaded = load_checkpoint(tmp_path / "c.pkl").augment["x"]
    assert torch.equal(loaded, tensor)
    assert loaded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1),
        np.zeros(2),
        {1, 2},
        object(),
        Path("x"),
        b"bytes",
        {(1, 2): 3},
        [[{"deep": lambda: 0}]],
    ],
)
def test_only_plain_values_are_saved(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="optimizers"):
        save_checkpoint(tmp_path / "c.pkl", Checkpoint(Config(), optimizers={"value": value}))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Failing writes


FULL_DISK = """
import resource, sys
from dnnlib.console import UserError
from training.checkpoints.checkpoint import save_checkpoint, load_checkpoint
checkpoint = load_checkpoint(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_checkpoint(sys.argv[1], checkpoint)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_a_write_that_fails_leaves_the_old_file(saved: Path, tmp_path: Path, limit: int) -> None:
    path = tmp_path / "ckpt.pkl"
    before = saved.read_bytes()
    assert len(before) > 20_000
    path.write_bytes(before)
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(path), str(limit)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"cannot write {path}: ")
    assert len(result.stdout.splitlines()) == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ckpt.pkl"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        save_checkpoint(tmp_path / "file" / "ckpt.pkl", Checkpoint(Config()))


# --------------------------------------------------------------------------------------------------
# Wrong files


def test_missing_folder_empty(tmp_path: Path) -> None:
    assert "No such file" in one_line(tmp_path / "none.pkl")
    assert "is a folder" in one_line(tmp_path)
    (tmp_path / "empty.pkl").write_bytes(b"")
    assert "is empty" in one_line(tmp_path / "empty.pkl")


def test_cut_off_anywhere(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "cut.pkl"
    for length in {
        1,
        2,
        3,
        4,
        5,
        100,
        *range(6, len(content), len(content) // 60),
        len(content) - 1,
        len(content) - 25,
    }:
        path.write_bytes(content[:length])
        assert ("damaged or cut off" if length >= 4 else "neither") in one_line(path)


def test_flipped_bits_are_noticed(saved: Path, tmp_path: Path) -> None:
    """In every record: a flipped weight would otherwise go unseen."""
    content, path = saved.read_bytes(), tmp_path / "flipped.pkl"
    with zipfile.ZipFile(saved) as archive:
        records = [record for record in archive.infolist() if record.file_size]
    for record in records[:: max(1, len(records) // 40)]:
        start = (
            record.header_offset
            + 30
            + int.from_bytes(
                content[record.header_offset + 26 : record.header_offset + 28], "little"
            )
        )
        start += int.from_bytes(
            content[record.header_offset + 28 : record.header_offset + 30], "little"
        )
        position = start + record.file_size // 2
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
        )
        assert "damaged or cut off" in one_line(path)


def test_released_snapshots_are_no_checkpoints_but_have_weights(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "released.pkl", Layout())
    with pytest.raises(UserError, match="--init-from"):
        load_checkpoint(path)
    assert load_weights(path).source == "released"


def test_files_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    for content in (b"hello", b"\x89PNG\r\n\x1a\n", b"ELF" * 50):
        path.write_bytes(content)
        assert "neither a file of this program nor a released snapshot" in one_line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("00000/img.png", b"x" * 100)
    assert "zip archive of another program" in one_line(path)
    marks: list[Any] = [
        {"format": 3},
        {"format": {"name": "x", "version": 1}},
        {"format": {"name": FORMAT_NAME, "version": "1"}},
    ]
    for other in ({"state_dict": {"w": torch.zeros(2)}}, torch.zeros(3), [], {1: 2}, *marks):
        torch.save(other, path)
        assert "another program" in one_line(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_torch_files(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "hostile.pkl"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    content = {"format": {"name": FORMAT_NAME, "version": FORMAT_VERSION}, "G": Hostile()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    one_line(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the exploit is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x02}q\x00.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02cos\nsystem\nU\x02id\x85R.",
    ],
)
def test_torch_file_with_other_instructions(saved: Path, tmp_path: Path, data: bytes) -> None:
    """The tensors of a good file with instructions of any kind."""
    path = tmp_path / "swapped.pkl"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for record in source.infolist():
            target.writestr(
                record, data if record.filename.endswith("/data.pkl") else source.read(record)
            )
    one_line(path)


def test_compressed_archives_are_refused(saved: Path, tmp_path: Path) -> None:
    """A few bytes could unpack to any amount."""
    path = tmp_path / "packed.pkl"
    with (
        zipfile.ZipFile(saved) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "damaged" in one_line(path)


def rewritten(saved: Path, path: Path, **changes: Any) -> Path:
    content = {**torch.load(saved, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not ...}, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx", "a.json", "a.SAFETENSORS", "a"])
def test_a_name_says_nothing_about_the_content(saved: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(saved, tmp_path / name)
    assert_same(load_checkpoint(tmp_path / name).G, load_checkpoint(saved).G)
    assert load_weights(tmp_path / name).source == "ours"


def test_newer_format(saved: Path, tmp_path: Path) -> None:
    path = rewritten(
        saved,
        tmp_path / "new.pkl",
        format={"name": FORMAT_NAME, "version": FORMAT_VERSION + 1},
        config={"unknown": 1},
    )
    assert "update the program" in one_line(path)


def test_the_first_format_is_still_read(saved: Path, tmp_path: Path) -> None:
    """Its settings had other names, `rendering.resolution` was that of the moment, and there was an
    empty section.
    """
    config = torch.load(saved, weights_only=True)["config"]
    training = config["training"]
    del training["resolution_initial"], training["resolution_fade_kimg"]
    training |= {"nrr_initial": 64, "nrr_final": 128, "nrr_fade_kimg": 128.0}
    config["model"]["rendering"]["resolution"] = 96
    mark = {"name": FORMAT_NAME, "version": 1}
    path = rewritten(saved, tmp_path / "old.pkl", format=mark, config=config, statistics={})
    old = load_checkpoint(path)
    assert old.config.training.resolution_initial == 64
    assert old.config.training.resolution_fade_kimg == 128
    assert old.config.model.rendering.resolution == 128
    assert load_weights(path).config.rendering.resolution == 96  # after 64 of 128 kimg


@pytest.mark.parametrize("key", KEYS)
def test_missing_sections(saved: Path, tmp_path: Path, key: str) -> None:
    assert ("another program" if key == "format" else key) in one_line(
        rewritten(saved, tmp_path / "less.pkl", **{key: ...})
    )


RING: list[Any] = []
RING.append(RING)


WRONG_SECTIONS: list[tuple[str, Any]] = [
    ("config", None),
    ("config", {"model": {"resolution": "large"}}),
    ("config", {"modl": {}}),
    ("progress", None),
    ("progress", [1]),
    ("G", [1]),
    ("G", {"w": 3}),
    ("D", torch.zeros(2)),
    ("G_ema", {1: torch.zeros(2)}),
    ("optimizers", {"D": {"state": {(1, 2): 3}}}),
    ("rng", {"torch": {"text": 1 << 70}}),
    ("cameras", 3),
    ("optimizers", {"ring": RING}),
]


@pytest.mark.parametrize(("key", "value"), WRONG_SECTIONS)
def test_sections_of_the_wrong_form(saved: Path, tmp_path: Path, key: str, value: Any) -> None:
    assert key in one_line(rewritten(saved, tmp_path / "wrong.pkl", **{key: value}))


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        torch.float32,
        torch.Size([3]),
        torch.eye(3).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
)
def test_values_that_no_checkpoint_has(saved: Path, tmp_path: Path, value: Any) -> None:
    """PyTorch would rebuild them; they are refused before it looks at the file."""
    assert "more than tensors and plain values" in one_line(
        rewritten(saved, tmp_path / "wrong.pkl", augment={"p": value})
    )


# --------------------------------------------------------------------------------------------------
# Into networks


def test_load_state_copies_and_keeps_the_form() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    weight = module.get_parameter("0.weight")
    state = {name: torch.full_like(value, 3) for name, value in module.state_dict().items()}
    load_state(module, state, "test")
    assert module.get_parameter("0.weight") is weight
    assert weight.requires_grad
    assert all(bool(value.eq(3).all()) for value in module.state_dict().values())
    state["0.weight"].zero_()
    assert weight.detach().eq(3).all()


def test_load_state_lists_all_that_does_not_fit() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state: dict[str, torch.Tensor] = {f"{index}.weight": torch.zeros(2, 2) for index in range(7)}
    state |= {
        "0.bias": torch.zeros(3),
        "1.bias": torch.zeros(2, 1),
        "2.bias": torch.tensor(1.0),
        "x": torch.zeros(1),
        "y": torch.zeros(1),
    }
    with pytest.raises(UserError) as caught:
        load_state(module, state, "generator of a.pkl")
    message = str(caught.value)
    assert message.startswith("generator of a.pkl: ")
    assert "6 missing: 3.bias, 4.bias, 5.bias, 6.bias and 2 more" in message
    assert "2 unexpected: x, y" in message
    assert (
        "3 differing: 0.bias (3 in the file, 2 here), 1.bias (2x1 in the file, 2 here), 2.bias (one"
        " number in the file, 2 here)" in message
    )
    assert "\n" not in message
    assert_same(dict(module.state_dict()), before)


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_load_state_takes_a_networks_own_state(kind: Any) -> None:
    torch.manual_seed(1)
    first, second = kind(small_model()), kind(small_model())
    load_state(second, first.state_dict(), "network")
    assert_same(dict(first.state_dict()), dict(second.state_dict()))


def test_built_networks(saved: Path) -> None:
    weights = load_weights(saved)
    assert weights.source == "ours"
    generator, discriminator = build_generator(weights), build_discriminator(weights)
    expected = small_checkpoint()
    assert_same(dict(generator.state_dict()), dict(expected.G_ema or {}))
    assert_same(dict(discriminator.state_dict()), dict(expected.D or {}))
    assert generator.config == expected.config.model
    assert generator.cameras is not None
    assert generator.cameras["radius"] == 2.7
    for module in (generator, discriminator):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_networks_that_are_not_there() -> None:
    empty = Weights(ModelConfig(), None, None, None, None, "ours")
    with pytest.raises(UserError, match="no generator"):
        build_generator(empty)
    with pytest.raises(UserError, match="no discriminator"):
        build_discriminator(empty)


def test_settings_that_ask_for_too_much(saved: Path) -> None:
    """A file may claim any size; memory is asked for only after its weights fit."""
    weights = load_weights(saved)
    weights.config.generator.w_dim = 10**7
    with pytest.raises(UserError, match="differing"):
        build_generator(weights)
    weights.config.discriminator.channel_max = weights.config.discriminator.channel_base = 2**27
    with pytest.raises(UserError, match="differing"):
        build_discriminator(weights)


def test_settings_that_make_no_network(saved: Path) -> None:
    weights = load_weights(saved)
    weights.config.superresolution.channels = (1, 2, 3, 4, 5)
    with pytest.raises(UserError, match="do not describe a network"):
        build_generator(weights)
    weights.config.generator.plane_channels = -3
    with pytest.raises(UserError, match="do not describe a network"):
        build_generator(weights)


def test_pickle_of_a_state_dict_is_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(weight=torch.zeros(2)), 4))
    with pytest.raises(UserError, match="no snapshot"):
        load_weights(path)


def test_loading_needs_no_name_on_disk_twice(saved: Path) -> None:
    """The loaded tensors live on after the file is gone or replaced."""
    copy = saved.with_name("copy.pkl")
    copy.write_bytes(saved.read_bytes())
    loaded = load_checkpoint(copy)
    copy.write_bytes(b"\0" * copy.stat().st_size)
    assert_same(dict(small_checkpoint().G or {}), loaded.G)


def test_a_url_is_fetched_once(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    class Response(io.BytesIO):
        headers = {"Content-Length": str(saved.stat().st_size)}  # noqa: RUF012

    def urlopen(url: str, timeout: float) -> Response:
        requests.append((url, timeout))
        return Response(saved.read_bytes())

    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for _ in range(2):
        assert load_weights("https://example.org/models/ckpt.pkl?download=1").source == "ours"
    assert len(requests) == 1
