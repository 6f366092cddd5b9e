"""What a step costs at least: its convolutions and matrix products, recorded and run alone."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import Recorder, measure_floor, products_alone, replay
from benchmarks.training_iteration import main


def work() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight, padding=1).mean((2, 3))
    vector = torch.randn(4, 1).expand(4, 5)  # strides of 0
    (y @ vector).square().sum().backward()
    assert weight.grad is not None
    return weight.grad


def test_the_replay_has_the_arithmetic_of_the_work_and_nothing_else() -> None:
    with Recorder() as recorder, FlopCounterMode(display=False) as counted:
        work()
    run = replay(recorder.calls)
    with FlopCounterMode(display=False) as alone:
        run()
    assert alone.get_total_flops() == counted.get_total_flops() > 0
    names = [str(call.function) for call in recorder.calls]
    assert names.count("aten.convolution.default") == 1
    assert names.count("aten.convolution_backward.default") == 1
    assert names.count("aten.mm.default") == 2  # the gradient of `vector` is not asked for


def test_layouts_and_precision_are_those_of_the_work() -> None:
    with Recorder() as recorder:
        work()
    first = recorder.calls[0].arguments[0]
    assert first.stride == (192, 1, 24, 3)
    made = first.make()
    assert made.stride() == first.stride
    assert made.dtype == torch.float32
    assert torch.isfinite(made).all()


def test_recording_changes_no_result() -> None:
    plain = work()
    with Recorder():
        recorded = work()
    assert torch.equal(plain, recorded)


def test_work_without_products_is_refused() -> None:
    with pytest.raises(ValueError, match="inference mode"):
        products_alone(lambda: torch.ones(2) + 1)


def test_ratio() -> None:
    floor = measure_floor(work, repeats=3)
    assert floor.ratio == pytest.approx(floor.work / floor.alone)
    assert floor.alone > 0


def test_on_the_command_line() -> None:
    options = ["--cfg", "heads", "--resolution", "64", "--batch", "4", "--steps", "1", "--floor"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "iter_s" in result.output
    assert "step/floor" in result.output
