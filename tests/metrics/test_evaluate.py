"""Real pictures and their cache, work shared between processes, and everything together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnlib import files
from dnnlib.console import UserError
from metrics.consistency import view_consistency
from metrics.coverage import density_coverage
from metrics.detectors import Detector
from metrics.evaluate import evaluate
from metrics.kid import kernel_distance
from metrics.moments import Moments
from metrics.names import parse_metrics
from metrics.options import MetricOptions
from metrics.ppl import path_length
from metrics.precision_recall import precision_recall
from metrics.processes import ALONE, WorkerGroup
from metrics.reals import RealImages, cached_arrays
from metrics.results import append_results, as_json
from metrics.sampling import GeneratorSampler
from metrics.shape import shape
from tests.metrics.scenes import Linear, Scene, draw_camera, sampler_of, squared
from torch_utils.distributed.processes import run_processes

# --------------------------------------------------------------------------------------------------
# Real pictures and their cache


def test_the_choice_of_reals_is_fixed_and_nested():
    reals = RealImages(100, 32, "key", lambda _: torch.zeros(0))
    assert reals.chosen(None).tolist() == list(range(100))
    assert reals.chosen(10).tolist() == reals.chosen(40)[:10].tolist()
    assert len(set(reals.chosen(40).tolist())) == 40


def test_cached_arrays_are_computed_once_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(5.0), "n": np.array(3)}

    for key, expected in (
        ({"data": "x"}, 1),
        ({"data": "x"}, 1),
        ({"data": "y"}, 2),
        ({"data": "x", "hash": "1"}, 3),
        ({"data": "x"}, 3),
    ):
        arrays = cached_arrays(key, ALONE, compute)
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert int(arrays["n"]) == 3
        assert len(calls) == expected


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "other"])
def test_a_damaged_entry_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    values = np.random.RandomState(0).randn(300)
    cached_arrays({"data": "x"}, ALONE, lambda: {"a": values})
    (entry,) = (tmp_path / "metrics").iterdir()
    whole = entry.read_bytes()
    cached_arrays({"data": "y"}, ALONE, lambda: {"a": values + 1})
    (other,) = set((tmp_path / "metrics").iterdir()) - {entry}
    flipped = whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:]
    entry.write_bytes(
        {
            "cut": whole[:-40],
            "flipped": flipped,
            "empty": b"",
            "text": b"hello",
            "other": other.read_bytes(),
        }[damage]
    )
    np.testing.assert_array_equal(
        cached_arrays({"data": "x"}, ALONE, lambda: {"a": values})["a"], values
    )
    assert "damaged" in capsys.readouterr().err
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "file"))
    assert cached_arrays({"data": "x"}, ALONE, lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]
    assert "not kept" in capsys.readouterr().err
    assert files.cache_dir().is_file()


# --------------------------------------------------------------------------------------------------
# Several processes


def shared_work(_: torch.device, folder: Path) -> None:
    """What each process of a group finds, from its share of the work."""
    team = WorkerGroup.of_group(torch.device("cpu"))
    random = np.random.RandomState(0)
    rows, others = (
        torch.from_numpy(random.randn(700, 6)),
        torch.from_numpy(random.randn(600, 6) * 1.1),
    )
    moments = Moments(6)
    for start, count in team.batches(len(rows), 16):
        moments.add(rows[start : start + count] + 1000)
    mean, covariance = moments.merged(team).statistics()
    found = {
        "mean": mean.tolist(),
        "covariance": covariance.tolist(),
        "kid": kernel_distance(rows, others, subsets=7, size=100, team=team),
        "pr": precision_recall(rows, others, team=team),
        "coverage": density_coverage(rows, others, team=team),
        "shape": list(shape(sampler_of(Scene(size=32, raw=16)), None, 5, 2, team).values()),
        "views": view_consistency(sampler_of(Scene(size=32, raw=16)), 5, 2, team),
        "ppl": path_length(sampler_of(Linear()), squared, 5, 2, team),
    }
    (folder / f"{team.size}-{team.rank}.json").write_text(json.dumps(found))


def flattened(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [number for part in value for number in flattened(part)]
        if isinstance(value, list)
        else [value]
    )


def test_processes_find_together_what_one_finds_alone(tmp_path: Path):
    for count in (1, 3):
        run_processes(count, "cpu", shared_work, tmp_path, hint="")
    results = {path.name: flattened(json.loads(path.read_text())) for path in tmp_path.iterdir()}
    assert len(results) == 1 + 3
    for values in results.values():
        assert values == pytest.approx(results["1-0.json"], rel=1e-10)


# --------------------------------------------------------------------------------------------------
# evaluate


def mean_colour_detector(*_: Any) -> Detector:
    """Features and logits: mean and mean square of each colour."""

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        values = images.double().flatten(2) / 255
        rows = torch.cat([values.mean(2), values.square().mean(2)], 1)
        return rows, rows * 9

    return Detector("lite0", "0" * 64, "test", features, 6, 6, torch.device("cpu"))


def reals_of(count: int) -> tuple[RealImages, list[int]]:
    """Pictures of a scene with other seeds, and a list that notes how many were read."""
    sampler, read = sampler_of(Scene(), seed=10_000), []

    def pictures(indices: np.ndarray) -> Tensor:
        read.append(len(indices))
        return torch.cat([sampler(int(index), 1) for index in indices])

    return RealImages(count, 64, "scene", pictures, name="scene"), read


def test_evaluate_end_to_end_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.picture_sets.load_detector", mean_colour_detector)
    reals, read = reals_of(60)
    names = ["kid30", "fid40_full", "fid20", "consistency4", "pr303_full", "is25"]
    results = evaluate(names, sampler_of(Scene()), reals, MetricOptions(batch=7, detector="lite0"))
    assert [result.name for result in results] == [
        "kid30_lite0",
        "fid40_full_lite0",
        "fid20_lite0",
        "consistency4",
        "pr303_full_lite0",
        "is25_lite0",
    ]
    # pr and fid ask for different things of all 60; pr also for 30 in the fakes' place, and for
    # their mirror images, beside the 30 that kid has read
    assert sum(read) == 30 + 60 + 20 + 60 + 30 + 30
    again = evaluate(names, sampler_of(Scene()), reals, MetricOptions(batch=5, detector="lite0"))
    assert sum(read) == 230
    for first, second in zip(results, again, strict=True):
        assert first.values == pytest.approx(second.values, rel=1e-9)
    detector, sampler = mean_colour_detector(), sampler_of(Scene())
    fakes = detector(sampler(0, 40))[0].double().numpy()
    true = detector(reals.read(np.arange(60)))[0].double().numpy()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    expected = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(rows)) for rows in (fakes, true)),
        verbose=False,
    )
    assert results[1].values["fid40_full_lite0"] == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-6
    )
    protocol = results[0].protocol
    assert (
        protocol["fakes"],
        protocol["reals"],
        protocol["data_pictures"],
        protocol["data_hash"],
    ) == (30, 30, 60, "scene")
    assert (protocol["subset_size"], protocol["detector"]) == (30, "lite0")


def test_other_reals_and_mirror_images_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Against the functions of features, called with the pictures that the order names."""
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.picture_sets.load_detector", mean_colour_detector)
    reals, read = reals_of(90)
    options = MetricOptions(batch=7, detector="lite0")
    found = evaluate(["coverage405", "pr403", "coverage505"], sampler_of(Scene()), reals, options)
    order = np.random.RandomState(0).permutation(90)
    first, second = order[:40], order[40:80]
    detector, count = mean_colour_detector(), sum(read)
    rows, others, mirrored = (
        detector(pictures)[0]
        for pictures in (reals.read(first), reals.read(second), reals.read(second).flip(-1))
    )
    values = found[0].values
    for prefix, fakes in (("real_", others), ("mirrored_", mirrored)):
        density, coverage = density_coverage(fakes, rows, 5)
        assert values[f"coverage405_lite0_{prefix}density"] == pytest.approx(density)
        assert values[f"coverage405_lite0_{prefix}coverage"] == pytest.approx(coverage)
    precision, recall = precision_recall(others, rows, 3)
    assert found[1].values["pr403_lite0_real_precision"] == precision
    assert found[1].values["pr403_lite0_real_recall"] == recall
    # fewer than twice as many reals: no such set
    assert set(found[2].values) == {"coverage505_lite0_density", "coverage505_lite0_coverage"}
    evaluate(["coverage405", "pr403"], sampler_of(Scene()), reals, options)
    assert sum(read) == count + 120  # nothing but what this test itself has read
    full = evaluate(["coverage405_full"], sampler_of(Scene()), reals, options)[0].values
    last, rest = (detector(reals.read(indices))[0] for indices in (order[50:], order[:50]))
    density, _ = density_coverage(last, rest)
    assert full["coverage405_full_lite0_real_density"] == pytest.approx(density)


def test_a_mirror_image_of_what_is_compared_with_is_no_unseen_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mean colours of a picture and of its mirror image are equal, so each twin would be found."""
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.picture_sets.load_detector", mean_colour_detector)
    half, detector = 60, mean_colour_detector()
    sampler = sampler_of(Scene(), seed=10_000)

    def read(indices: np.ndarray) -> Tensor:
        plain = torch.cat([sampler(int(i) % half, 1) for i in indices])
        is_mirrored = torch.from_numpy(indices >= half)[:, None, None, None]
        return torch.where(is_mirrored, plain.flip(-1), plain)

    names = tuple(map(str, range(half)))
    reals = RealImages(2 * half, 64, "mirrored", read, name="scene", names=names)
    order = np.random.RandomState(0).permutation(2 * half).tolist()
    tail = [i for i in order[30:] if (i + half) % (2 * half) not in order[:30]][:30]
    rest = [i for i in order[:-30] if (i + half) % (2 * half) not in order[-30:]]
    options = MetricOptions(batch=30, detector="lite0")
    asked = ["coverage303", "coverage303_full", "coverage503"]
    found = evaluate(asked, sampler_of(Scene()), reals, options)
    sets = ((tail, order[:30]), (order[-30:], rest))
    for result, (others, compared) in zip(found[:2], sets, strict=True):
        rows = detector(read(np.array(compared)))[0]
        for prefix, flip in (("real", False), ("mirrored", True)):
            pictures = read(np.array(others))
            fakes = detector(pictures.flip(-1) if flip else pictures)[0]
            density, coverage = density_coverage(fakes, rows, 3)
            assert result.values[f"{result.name}_{prefix}_density"] == pytest.approx(density)
            assert result.values[f"{result.name}_{prefix}_coverage"] == pytest.approx(coverage)
    assert len(found[2].values) == 2  # too few whose twins are not compared with


def test_every_metric_that_compares_with_reals_says_so_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    for module in ("picture_sets", "generator_metrics"):
        monkeypatch.setattr(f"metrics.{module}.load_detector", mean_colour_detector)
    reals = dataclasses.replace(
        reals_of(20)[0],
        labels=sampler_of(Scene()).cameras(0, 20),
        read_depth=lambda indices: torch.ones(len(indices), 1, 32, 32),
        details={"mirror": True},
    )
    names = ["fid9_lite0", "fid3d9_lite0", "normals9_lite0", "depth9", "shape9"]
    results = evaluate(names, sampler_of(Scene()), reals, MetricOptions())
    compared = {"reals": 9, "data_pictures": 20, "data_hash": "scene", "mirror": True}
    network = {"detector": "lite0", "detector_sha256": "0" * 64, "detector_software": "test"}
    for result in results:
        expected = compared | (network if result.name.endswith("lite0") else {})
        assert expected.items() <= result.protocol.items(), result.name
        assert ("detector" in result.protocol) == ("detector" in expected)


def test_numbers_are_exchanged_where_float64_is():
    for is_shared in (True, False):
        options = MetricOptions(device=torch.device("mps"), is_shared=is_shared)
        assert options.team.device == torch.device("cpu")


def test_plain_pictures_have_no_other_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.picture_sets.load_detector", mean_colour_detector)

    class Plain:
        protocol: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, start: int, count: int) -> Tensor:
            return sampler_of(Scene())(start, count)

    options = MetricOptions(detector="lite0")
    assert evaluate(["is20"], Plain(), None, options)[0].values["is20_lite0"] >= 1
    with pytest.raises(UserError, match="looks at a generator"):
        evaluate(["relief4"], Plain(), None, options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fid70", "needs 70 real pictures, scene has 60"),
        ("coverage705", "needs 70 real pictures, scene has 60"),
        ("normals20_lite0", "no depth maps"),
        ("pr613", "needs 61"),
        ("identity4", "--identity-model"),
        ("pose4", "--pose-model"),
    ],
)
def test_what_cannot_end_well_is_refused_at_the_start(name: str, words: str):
    with pytest.raises(UserError, match=words):
        evaluate([name], sampler_of(Scene()), reals_of(60)[0], MetricOptions())


def test_without_reals_there_is_nothing_to_compare_with():
    for name in ("fid20", "kid20_full", "pr203", "coverage203", "fid3d9", "normals9", "depth4"):
        with pytest.raises(UserError, match="--data"):
            evaluate([name], sampler_of(Scene()), None, MetricOptions())
    assert not parse_metrics(["is20"])[0].needs_reals


def test_results_are_whole_lines_of_json(tmp_path: Path):
    sampler = GeneratorSampler(Scene(), draw_camera)
    results = evaluate(["relief2"], sampler, None, MetricOptions())
    for _ in range(2):
        append_results(tmp_path, results, network="x.pkl")
    lines = [
        json.loads(line) for line in (tmp_path / "metric-relief2.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 2
    assert lines[0]["results"] == results[0].values
    assert lines[0]["network"] == "x.pkl"
    results[0].values["relief2_relief"] = float("nan")
    assert json.loads(as_json(results[0]))["results"]["relief2_relief"] is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        append_results(tmp_path / "file", results)
