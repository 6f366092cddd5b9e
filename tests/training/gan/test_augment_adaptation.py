"""Adaptation of augmentation: p goes where the paper sends it, and goes on exactly after a stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dnnlib.console import UserError
from training.config.settings import AugmentConfig
from training.gan.augment import AugmentPipe
from training.gan.augment_adaptation import AdaptiveProbability


def controller(**settings: Any) -> AdaptiveProbability:
    return AdaptiveProbability(
        AugmentPipe(), AugmentConfig(**{"mode": "ada", "kimg": 1.0, **settings})
    )


def feed(
    adaptive: AdaptiveProbability, share_positive: float, batches: int, batch: int = 20
) -> None:
    logits = torch.where(torch.arange(batch) < share_positive * batch, 3.0, -0.1)[:, None]
    for _ in range(batches):
        adaptive.observe(logits)
        adaptive.end_batch(batch)


@pytest.mark.parametrize(
    ("share", "direction"), [(1.0, 1), (0.85, 1), (0.8, 0), (0.75, -1), (0.0, -1)]
)
def test_p_moves_towards_the_target(share, direction):
    # a share s of positive logits has the mean sign 2 s - 1; the target is 0.6
    adaptive = controller(p=0.5)
    feed(adaptive, share, 3)
    assert adaptive.pipe.p.item() == 0.5
    feed(adaptive, share, 1)
    assert adaptive.pipe.p.item() == pytest.approx(0.5 + direction * 4 * 20 / 1000)


def test_only_the_last_interval_counts():
    adaptive = controller(p=0.5)
    feed(adaptive, 1.0, 4)
    feed(adaptive, 0.7, 4)
    assert adaptive.pipe.p.item() == pytest.approx(0.5)


def test_p_takes_the_published_time_from_none_to_all():
    adaptive = controller(kimg=500.0)
    feed(adaptive, 1.0, 400, batch=32)
    assert adaptive.pipe.p.item() == pytest.approx(400 * 32 / 500e3, rel=1e-4)


@pytest.mark.parametrize(("start", "share", "end"), [(0.05, 0.0, 0.0), (0.95, 1.0, 1.0)])
def test_p_stays_a_probability(start, share, end):
    adaptive = controller(p=start)
    feed(adaptive, share, 8)
    assert adaptive.pipe.p.item() == end
    AugmentPipe(adaptive.pipe.p.item())(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("mode", "expected"), [("noaug", 0.0), ("fixed", 0.25)])
def test_other_modes_keep_p(mode, expected):
    adaptive = controller(mode=mode, p=0.25)
    feed(adaptive, 1.0, 8)
    assert adaptive.pipe.p.item() == expected


def test_interrupted_adaptation_goes_on_exactly():
    straight, first = controller(p=0.2), controller(p=0.2)
    for share in (1.0, 0.9, 0.9, 0.5, 0.3, 0.6):  # only all four together are above the target
        feed(straight, share, 1)
    for share in (1.0, 0.9, 0.9):
        feed(first, share, 1)
    second = controller()
    second.load_state_dict(first.state_dict())
    for share in (0.5, 0.3, 0.6):
        feed(second, share, 1)
    assert second.state_dict() == straight.state_dict()
    assert second.pipe.p.item() != pytest.approx(0.2)


def test_state_is_plain_numbers():
    state = controller(p=0.2).state_dict()
    flat = [*state.pop("sums"), *state.values()]
    assert all(type(value) in (int, float) for value in flat)


def test_processes_decide_on_their_common_mean():
    # Alone this process (mean sign 1) would raise p; with the other's 60 fakes-looking images the
    # mean is -0.5.
    adaptive = controller(p=0.5, interval=1)
    adaptive.observe(torch.ones(20, 1))
    adaptive.end_batch(80, reduce=lambda sums: sums.add_(torch.tensor([-60.0, 60.0])))
    assert adaptive.pipe.p.item() == pytest.approx(0.5 - 0.08)


def test_batches_in_parts_weigh_every_image_alike():
    adaptive = controller(p=0.5, interval=1)
    adaptive.observe(torch.ones(2, 1))
    adaptive.observe(-torch.ones(6, 1))
    assert adaptive.seen.tolist() == [-4.0, 8.0]


def test_what_is_saved_between_adjustments_is_of_all_processes():
    adaptive = controller(p=0.5, interval=4)
    adaptive.observe(torch.ones(20, 1))
    adaptive.end_batch(80, reduce=lambda sums: sums.add_(torch.tensor([-60.0, 60.0])))
    assert adaptive.state_dict() == {"p": 0.5, "sums": [-40.0, 80.0], "images": 80, "batches": 1}


@pytest.mark.parametrize(
    "wrong",
    [{"p": 1.5}, {"p": -0.1}, {"p": math.nan}, {"target": 2.0}, {"interval": 0}, {"kimg": 0.0}],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))} is"):
        controller(**wrong)


def test_what_processes_add_up_lies_where_the_probability_does() -> None:
    """NCCL takes tensors on the GPU only, also when nothing was observed and after a resume."""
    pipe = AugmentPipe().to("meta")
    adaptation = AdaptiveProbability(pipe, AugmentConfig(mode="ada", interval=2))
    devices: list[str] = []
    adaptation.end_batch(8, reduce=lambda values: devices.append(values.device.type))
    adaptation.sums = torch.zeros(2)  # as numbers that a checkpoint holds
    adaptation.load_state_dict({"p": 0.1, "sums": [1.0, 2.0], "images": 8, "batches": 0})
    adaptation.end_batch(8, reduce=lambda values: devices.append(values.device.type))
    assert devices == ["meta", "meta"]
    assert adaptation.sums.device.type == "meta"
