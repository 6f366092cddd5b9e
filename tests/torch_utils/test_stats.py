"""Running statistics against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_utils.stats import Statistics


def test_mean_and_standard_deviation_over_all_reports() -> None:
    random = np.random.RandomState(0)
    parts = [random.randn(3, 4) * 5 + 100, random.randn(7) * 5 + 100, random.randn(1)]
    statistics = Statistics()
    for part in parts:
        statistics.report("x", torch.from_numpy(part))
    everything = np.concatenate([part.ravel() for part in parts])
    found = statistics.collect()["x"]
    assert found["count"] == 20
    assert found["mean"] == pytest.approx(everything.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(everything.std(), rel=1e-9)


def test_numbers_and_tensors_of_any_kind() -> None:
    statistics = Statistics()
    statistics.report("x", 3)
    statistics.report("x", 1.0)
    statistics.report("x", torch.tensor([2, 2]))
    statistics.report("x", torch.tensor(2.0, requires_grad=True))
    statistics.report("x", torch.tensor([True, False]).bfloat16())
    found = statistics.collect()["x"]
    assert (found["count"], found["mean"]) == (7, pytest.approx(11 / 7))


def test_names_are_apart_and_sorted_and_collecting_starts_afresh() -> None:
    statistics = Statistics()
    statistics.report("b", 1.0)
    statistics.report("a", 2.0)
    assert {name: value["mean"] for name, value in statistics.collect().items()} == {"a": 2, "b": 1}
    assert statistics.collect() == {}
    statistics.report("b", 5.0)
    assert statistics.collect() == {"b": {"count": 1, "mean": 5, "std": 0}}


def test_sums_do_not_lose_small_numbers() -> None:
    statistics = Statistics()
    statistics.report("x", torch.full((1000,), 1e-4))
    statistics.report("x", torch.tensor([1e4]))
    assert statistics.collect()["x"]["mean"] == pytest.approx((0.1 + 1e4) / 1001, rel=1e-9)


def test_nothing_and_not_a_number() -> None:
    statistics = Statistics()
    statistics.report("empty", torch.zeros(0))
    statistics.report("bad", torch.tensor([1.0, math.nan]))
    found = statistics.collect()
    assert found["empty"]["count"] == 0
    assert math.isnan(found["empty"]["mean"])
    assert math.isnan(found["bad"]["mean"])


def test_everything_is_summed_up_on_one_device() -> None:
    # Reports come from the GPU (losses) and from Python (settings): a GPU's statistics must be one
    # table all the same.
    statistics = Statistics("meta")
    statistics.report("loss", torch.ones(3))
    statistics.report("setting", 1.0)
    assert {value.device.type for value in statistics._moments.values()} == {"meta"}
    assert {value.dtype for value in statistics._moments.values()} == {torch.float64}


def test_mps_has_no_float64() -> None:
    assert Statistics("mps").device.type == "cpu"
