"""calc_metrics.py on a tiny model: the real command, beside figures made with torch-fidelity, and
everything that it must refuse.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import calc_metrics
from metrics.sampling import CAMERA_STREAM
from open_eg3d import load_generator
from open_eg3d.measuring import real_images
from tests.metrics.networks import inception_weights, lpips_reference, write_onnx
from tests.metrics.scenes import Scene
from tests.tiny import Ended, call, encode, finish, orbit_labels, start, tiny_config, write_dataset
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.data.dataset import ImageDataset
from training.data.depth_maps import DEPTH_UNIT
from training.networks.generator import Generator

HEADS = Path(__file__).parent / "data" / "heads64.zip"
SIZE = 64
CHOICES = {
    "--precision": ["fp32", "bf16"],
    "--detector": ["inception", "lite0", "lite1"],
    "--cameras": ["data", "checkpoint", "range"],
    "--conditioning": ["own", "frontal"],
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, conditioned on the camera, and a surface to see."""
    config = tiny_config("generator.pose_conditioning=true", "generator.c_scale=1")
    config.model.resolution = SIZE
    config.model.rendering.resolution = 16
    config.model.rendering.density_gain = 30.0
    torch.manual_seed(0)
    cameras = CameraSummary.from_labels(orbit_labels(20))
    path = tmp_path_factory.mktemp("network") / "network-snapshot-000012.pkl"
    save_checkpoint(
        path,
        Checkpoint(
            config=config, G_ema=Generator(config.model).state_dict(), cameras=cameras.to_dict()
        ),
    )
    return path


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(inception_weights(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(folder / "hub"))
    # compiled operators would be built anew in every fresh cache
    monkeypatch.setenv("OPEN_EG3D_OPS", "reference")
    return folder


def run(*arguments: str | Path) -> Ended:
    return finish(start("calc_metrics.py", *arguments, "--device", "cpu"))


def calculate(*arguments: str | Path) -> Ended:
    """The command in this process, which need not import everything again."""
    return call(calc_metrics.main, *arguments, "--device", "cpu")


def results_of(ended: Ended) -> dict[str, dict[str, Any]]:
    """What --json printed, by metric."""
    return {line["metric"]: line for line in map(json.loads, ended.assert_done().out.splitlines())}


# --------------------------------------------------------------------------------------------------
# Distances between sets of pictures


def fakes_by_hand(network: Path, count: int) -> Tensor:
    """Latent of seed i, camera of a stream of its own, both as documented; one by one."""
    generator, labels = load_generator(network), ImageDataset(HEADS).labels
    pictures = []
    for i in range(count):
        z = torch.from_numpy(np.random.RandomState(i).randn(1, generator.z_dim)).float()
        place = np.random.RandomState(
            np.random.MT19937(np.random.SeedSequence([i, CAMERA_STREAM]))
        ).randint(len(labels))
        c = labels[place][None]
        image = generator.synthesis(generator.mapping(z, c), c).image
        pictures.append(((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(pictures)


def test_the_command_is_torch_fidelity_on_the_same_pictures(
    network: Path, inception: Path, tmp_path: Path
):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    names = "fid12,kid12,pr123,is12"
    arguments = (
        "--network",
        network,
        "--data",
        HEADS,
        "--metrics",
        names,
        "--detector-weights",
        inception,
        "--outdir",
        tmp_path,
    )
    ended = run(*arguments, "--batch", "7", "--json")
    results = results_of(ended)
    assert "not the published file" in ended.err

    extractor = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception),
    )
    dataset = ImageDataset(HEADS)
    reals = dataset.read(np.random.RandomState(0).permutation(len(dataset))[:12])[0]
    fakes, logits = (values.double() for values in extractor(fakes_by_hand(network, 12)))
    true = extractor(reals)[0].double()
    expected = {
        "fid12": fid_statistics_to_metric(
            *map(fid_features_to_statistics, (fakes, true)), verbose=False
        )["frechet_inception_distance"],
        "kid12": kid_features_to_metric(fakes, true, kid_subset_size=12, verbose=False)[
            "kernel_inception_distance_mean"
        ],
        "is12": isc_features_to_metric(logits)["inception_score_mean"],
    }
    shares = prc_features_to_metric(fakes, true, verbose=False)
    for name, value in expected.items():
        # a pixel may be rounded otherwise in another batch
        assert results[name]["results"][name] == pytest.approx(value, rel=2e-3)
    shown = {"pr123_precision": shares["precision"], "pr123_recall": shares["recall"]}
    assert {name: results["pr123"]["results"][name] for name in shown} == pytest.approx(shown)
    protocol = results["fid12"]["protocol"]
    assert {
        key: protocol[key]
        for key in (
            "fakes",
            "reals",
            "data_pictures",
            "truncation_psi",
            "neural_rendering_resolution",
            "precision",
        )
    } == {
        "fakes": 12,
        "reals": 12,
        "data_pictures": 200,
        "truncation_psi": 1.0,
        "neural_rendering_resolution": 16,
        "precision": "fp32",
    }
    assert protocol["conditioning"] == "own camera"
    assert protocol["cameras"] == "200 poses of the data"
    assert protocol["data_hash"] == dataset.key
    assert len(protocol["detector_sha256"]) == len(protocol["network_sha256"]) == 64
    written = json.loads((tmp_path / "metric-fid12.jsonl").read_text())
    assert written["results"] == results["fid12"]["results"]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (scalar,) = events.Scalars("Metrics/fid12")
    assert (scalar.step, scalar.value) == (
        12_000,
        pytest.approx(results["fid12"]["results"]["fid12"], rel=1e-6),
    )


def test_processes_and_batches_do_not_change_figures_and_reals_are_kept(
    network: Path, tmp_path: Path, cache: Path
):
    data = write_dataset(tmp_path / "data.zip", 24, SIZE)
    arguments = (
        "--network",
        network,
        "--data",
        data,
        "--metrics",
        "fid16_full,kid16,consistency3",
        "--detector",
        "lite0",
        "--json",
    )
    first = results_of(run(*arguments, "--batch", "8", "--procs", "2", "--outdir", tmp_path))
    assert list(first) == ["fid16_full_lite0", "kid16_lite0", "consistency3"]
    entries = {path: path.stat().st_mtime_ns for path in (cache / "metrics").iterdir()}
    assert len(entries) == 2
    second = results_of(calculate(*arguments, "--batch", "8", "--outdir", tmp_path))
    assert entries == {path: path.stat().st_mtime_ns for path in (cache / "metrics").iterdir()}
    for name in first:
        assert first[name]["results"] == pytest.approx(second[name]["results"], rel=1e-6)
    assert len((tmp_path / "metric-kid16_lite0.jsonl").read_text().splitlines()) == 2
    for path in entries:
        path.write_bytes(path.read_bytes()[:-1000])
    ended = calculate(*arguments, "--batch", "8", "--outdir", tmp_path)
    assert ended.err.count("damaged") == 2
    assert results_of(ended)["fid16_full_lite0"]["results"] == pytest.approx(
        second["fid16_full_lite0"]["results"], rel=1e-6
    )


def test_printed_results_name_their_protocol(network: Path, tmp_path: Path):
    ended = calculate(
        "--network",
        network,
        "--metrics",
        "is20",
        "--detector",
        "lite0",
        "--outdir",
        tmp_path,
        "--cameras",
        "checkpoint",
    )
    text = ended.assert_done().out
    assert re.search(r"^is20_lite0 +\d", text)
    for words in (
        "20 poses in the checkpoint",
        "detector lite0",
        "detector sha256",
        "truncation psi 1",
        "conditioning own camera",
    ):
        assert words in text


def test_cameras_and_conditioning_are_part_of_the_figure(network: Path, tmp_path: Path):
    arguments = (
        "--network",
        network,
        "--metrics",
        "is20_lite0,relief4",
        "--outdir",
        tmp_path,
        "--json",
    )
    ranges = ("--cameras", "range", "--yaw", "-10,10", "--pitch", "0,0")
    variants = {
        "own": ranges,
        "frontal": (*ranges, "--conditioning", "frontal"),
        "poses": (),
        "truncated": (*ranges, "--trunc", "0.5"),
    }
    found = {
        name: results_of(calculate(*arguments, *options)) for name, options in variants.items()
    }
    assert len({json.dumps(result["is20_lite0"]["results"]) for result in found.values()}) == len(
        variants
    )
    assert (
        "yaw uniform in -10..10 and pitch uniform in 0..0"
        in found["own"]["relief4"]["protocol"]["cameras"]
    )
    assert found["frontal"]["relief4"]["protocol"]["conditioning"] == "frontal camera"
    assert found["truncated"]["relief4"]["protocol"]["truncation_psi"] == 0.5


# --------------------------------------------------------------------------------------------------
# Measures of the generator itself


def test_measures_that_need_networks_of_others(network: Path, tmp_path: Path):
    torch.save(lpips_reference().state_dict(), tmp_path / "lpips.pth")
    write_onnx(tmp_path / "face.onnx", np.random.RandomState(0).randn(3 * 64, 8), size=8)
    write_onnx(tmp_path / "pose.onnx", np.random.RandomState(1).randn(3 * 64, 2) / 99, size=8)
    files = (
        "--lpips-weights",
        tmp_path / "lpips.pth",
        "--identity-model",
        tmp_path / "face.onnx",
        "--pose-model",
        tmp_path / "pose.onnx",
    )
    names = "ppl2_wend6,identity4,pose4,speed"
    results = results_of(
        calculate("--network", network, "--metrics", names, *files, "--outdir", tmp_path, "--json")
    )
    assert results["ppl2_wend6"]["results"]["ppl2_wend6"] > 0
    assert -1 <= results["identity4"]["results"]["identity4"] <= 1
    assert results["pose4"]["results"]["pose4_yaw_error"] > 0
    assert results["speed"]["results"]["speed_frames_per_second_cached_planes"] > 0
    assert len(results["pose4"]["protocol"]["detector_sha256"]) == 64


def write_depth_data(path: Path, count: int = 6) -> Path:
    """Pictures of a sphere with depth maps in the format of the built-in heads."""
    labels = orbit_labels(count)
    out = Scene(raw=SIZE).render(
        torch.zeros(count, 1, 4, 1, 1), torch.zeros(count, 1, 4), labels, SIZE
    )
    depth = (out.image_depth * out.alpha / DEPTH_UNIT).round()[:, 0].numpy().astype(np.uint16)
    maps = {f"depth/00000/img{i:08d}.png": encode(values) for i, values in enumerate(depth)}
    return write_dataset(
        path,
        count,
        SIZE,
        labels=[[f"00000/img{i:08d}.png", c.tolist()] for i, c in enumerate(labels)],
        files=maps,
    )


def test_depth_maps_of_the_data_are_the_truth(network: Path, tmp_path: Path):
    data = write_depth_data(tmp_path / "sphere.zip")
    reals = real_images(ImageDataset(data))
    assert reals.read_depth is not None
    truth = reals.read_depth(np.array([4, 1]))
    c = orbit_labels(6)[[4, 1]]
    expected = Scene(raw=SIZE).render(torch.zeros(2, 1, 4, 1, 1), torch.zeros(2, 1, 4), c, SIZE)
    solid = expected.alpha > 0
    assert torch.equal(truth > 0, solid)
    torch.testing.assert_close(
        truth[solid], expected.image_depth[solid].double(), atol=DEPTH_UNIT, rtol=0
    )

    mirrored = real_images(ImageDataset(data, mirror=True)).read_depth
    assert mirrored is not None
    assert torch.equal(mirrored(np.array([4, 7])), torch.stack([truth[0], truth[1].flip(-1)]))

    arguments = (
        "--network",
        network,
        "--metrics",
        "depth5",
        "--outdir",
        tmp_path,
        "--json",
        "--data",
    )
    first = results_of(calculate(*arguments, data))["depth5"]
    assert first["results"]["depth5_pictures"] == 5
    assert first["results"]["depth5_depth_error"] > 0.1  # random weights are no sphere
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / "folder")
    second = results_of(calculate(*arguments, tmp_path / "folder"))["depth5"]
    assert second["results"] == pytest.approx(first["results"])

    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    (tmp_path / "folder" / "depth" / "00000" / "img00000002.png").write_bytes(buffer.getvalue())
    calculate(*arguments, tmp_path / "folder").assert_refused(1, "img00000002.png")


# --------------------------------------------------------------------------------------------------
# Wrong input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "fvd2k"), ("--metrics", "fvd2k", "fidN_full", "ppl2_wend")),
        (("--metrics", ","), ("--metrics", "no metric")),
        (("--metrics", "fid2k"), ("fid2k", "--data")),
        (("--metrics", "relief4", "--cameras", "data"), ("--cameras", "--data")),
        (("--metrics", "relief4", "--yaw", "-1,1"), ("--yaw", "--cameras range")),
        (("--metrics", "relief4", "--cameras", "range", "--yaw", "5"), ("--yaw", "-30,30")),
        (("--metrics", "relief4", "--cameras", "range", "--yaw", "5,nan"), ("--yaw",)),
        (("--metrics", "relief4", "--cameras", "range", "--pitch", "5,-5"), ("--pitch",)),
        (("--metrics", "relief4", "--trunc", "inf"), ("--trunc",)),
        (("--metrics", "relief4", "--seed", "4294967294"), ("--seed", "4294967295")),
        (("--metrics", "relief4", "--detector", "vgg"), ("--detector", "lite0")),
        (("--metrics", "relief4", "--batch", "0"), ("--batch",)),
        (("--metrics", "relief4", "--procs", "0"), ("--procs",)),
    ],
)
def test_wrong_options(network: Path, arguments: tuple[str, ...], words: tuple[str, ...]):
    calculate("--network", network, *arguments).assert_refused(2, *words)


def test_wrong_files(network: Path, inception: Path, tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    small, unlabelled = write_dataset(tmp_path / "small.zip", 5), tmp_path / "unlabelled"
    unlabelled.mkdir()
    for index in range(20):
        (unlabelled / f"{index}.png").write_bytes(encode(np.zeros((SIZE, SIZE, 3), dtype=np.uint8)))
    cases: list[tuple[tuple[str | Path, ...], tuple[str, ...]]] = [
        (("fid20", "--data", tmp_path / "none.zip"), ("none.zip",)),
        (("fid300", "--data", HEADS), ("fid300 needs 300 real pictures", "200", "_full")),
        (
            ("fid300", "--data", HEADS, "--mirror", "--detector-weights", tmp_path / "text"),
            ("text", "--detector-weights"),
        ),
        (("kid4", "--data", small, "--detector", "lite0"), ("32 pixels", "makes 64")),
        (("fid20", "--data", unlabelled), ("dataset.json",)),
        (("is20", "--detector-weights", tmp_path / "text"), ("text", "--detector-weights")),
        (("is20", "--detector-weights", tmp_path / "other.pth"), ("other.pth", "Inception")),
        (("is20", "--detector-weights", tmp_path / "absent"), ("absent",)),
        (
            ("is20_lite0", "--detector", "lite0", "--detector-weights", inception),
            ("inception.pth", "EfficientNet"),
        ),
        (("ppl2_wend4", "--lpips-weights", inception), ("inception.pth", "VGG16")),
        (("identity4",), ("--identity-model",)),
        (("identity4", "--identity-model", tmp_path / "text"), ("--identity-model", "text")),
        (("pose4",), ("--pose-model",)),
        (("depth4", "--data", HEADS), ("heads64.zip", "no depth maps")),
        (("relief4", "--outdir", tmp_path / "text"), ("text",)),
        (("relief4", "--outdir", tmp_path / os.fsdecode(b"\xe9")), ("UTF-8",)),
    ]
    for (metric, *arguments), words in cases:
        ended = calculate(
            "--network", network, "--metrics", metric, "--outdir", tmp_path / "out", *arguments
        )
        ended.assert_refused(1, *words)
    calculate("--network", tmp_path / "text", "--metrics", "relief4").assert_refused(1, "text")
    assert not list(tmp_path.rglob("metric-*"))


def test_pictures_without_labels_do_for_a_model_that_needs_none(network: Path, tmp_path: Path):
    data, unlabelled = write_dataset(tmp_path / "data.zip", 6, SIZE), tmp_path / "pictures"
    with zipfile.ZipFile(data) as archive:
        archive.extractall(unlabelled)
    (unlabelled / "dataset.json").unlink()
    arguments = (
        "--metrics",
        "fid6_full",
        "--detector",
        "lite0",
        "--json",
        "--outdir",
        tmp_path / "out",
        "--data",
    )
    calculate("--network", network, *arguments, unlabelled).assert_refused(
        1, "pictures", "dataset.json", "conditioned on cameras"
    )
    checkpoint = load_checkpoint(network)
    checkpoint.config.model.generator.pose_conditioning = False
    plain = tmp_path / "plain.pkl"
    save_checkpoint(plain, checkpoint)
    calculate("--network", plain, *arguments, unlabelled, "--cameras", "data").assert_refused(
        1, "dataset.json", "--cameras checkpoint"
    )
    found = results_of(calculate("--network", plain, *arguments, unlabelled, "--mirror"))
    assert found["fid6_full_lite0"]["protocol"]["cameras"] == "20 poses in the checkpoint"
    assert found["fid6_full_lite0"]["protocol"]["reals"] == 12
    labelled = results_of(
        calculate("--network", plain, *arguments, data, "--mirror", "--cameras", "checkpoint")
    )
    for name, result in found.items():
        assert result["results"] == pytest.approx(labelled[name]["results"], rel=1e-6)
    calculate("--network", plain, "--metrics", "depth2", "--data", unlabelled).assert_refused(
        1, "no depth maps"
    )


def test_half_precision_is_another_figure_and_says_so(network: Path, tmp_path: Path):
    arguments = (
        "--network",
        network,
        "--metrics",
        "is20_lite0",
        "--outdir",
        tmp_path,
        "--json",
        "--precision",
    )
    full, half = (
        results_of(calculate(*arguments, precision))["is20_lite0"] for precision in ("fp32", "bf16")
    )
    assert [result["protocol"]["precision"] for result in (full, half)] == ["fp32", "bf16"]
    assert full["results"]["is20_lite0"] != half["results"]["is20_lite0"]
    assert half["results"]["is20_lite0"] == pytest.approx(full["results"]["is20_lite0"], rel=0.05)


def test_a_mistake_in_one_of_several_processes_is_one_line(network: Path, tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    arguments = (
        "--network",
        network,
        "--metrics",
        "is20",
        "--detector-weights",
        tmp_path / "text",
        "--procs",
        "2",
        "--outdir",
        tmp_path,
    )
    run(*arguments).assert_refused(1, "text", "--detector-weights")


def test_without_weights_and_network_a_line_says_where_to_put_them(
    network: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("urllib.request.urlopen", _offline)
    calculate("--network", network, "--metrics", "is20").assert_refused(
        1, "--detector-weights FILE", "weights-inception-2015-12-05-6726825d.pth"
    )
    calculate("--network", network, "--metrics", "ppl2_wend4").assert_refused(
        1, "--lpips-weights FILE", "vgg16-397923af.pth"
    )


def _offline(*_: object, **__: object) -> None:
    raise OSError("no network here")


# --------------------------------------------------------------------------------------------------
# The contract

OPTIONS = """
--batch --cameras --conditioning --data --detector --detector-weights --device --help
--identity-model --json --lpips-weights --metrics --mirror --network --no-mirror --nrr --outdir
--pitch --pose-model --precision --procs --report --report-fakes --seed --trunc --trunc-cutoff --yaw
--version
"""


def test_option_names():
    found = {
        name
        for option in calc_metrics.main.params
        for name in (*option.opts, *option.secondary_opts)
    } | {"--help"}
    assert found == set(OPTIONS.split())
    for name, choices in CHOICES.items():
        (option,) = [option for option in calc_metrics.main.params if name in option.opts]
        assert list(option.type.choices) == choices  # type: ignore[attr-defined]


def test_help_is_shown_at_once():
    ended = finish(start("calc_metrics.py", "--help")).assert_done()
    assert ended.out.startswith("Usage: ")
    assert ended.err == ""
