"""Estimated times on GPUs: what is counted, and that the documentation shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_estimates
from torch_utils.ops import bias_act, library

DOCS = Path(__file__).parents[1] / "docs"


def test_expected_times_follow_bytes_and_operations() -> None:
    gpu = gpu_estimates.Gpu("x", gigabytes=1000, fp32=10, fp16=100, launch=1e-6)
    seconds = [
        gpu.seconds(gpu_estimates.Work("copy", 8 * 10**8, 0, False)),
        gpu.seconds(gpu_estimates.Work("fp32 convolution", 1, 6 * 10**12, False)),
        gpu.seconds(gpu_estimates.Work("fp16 convolution", 1, 45 * 10**12, True)),
        gpu.seconds(gpu_estimates.Work("tiny", 1, 1, False)),
    ]
    assert seconds == pytest.approx([1e-3, 1.0, 1.0, 1e-6])


def test_counted_work_of_a_convolution_and_an_operator() -> None:
    if not library.load():
        pytest.skip(f"no compiled operators: {library.failure()}")
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)

    def run() -> None:
        bias_act(torch.nn.functional.conv2d(x, weight, padding=1).view(2, 5, 64), act="lrelu")

    convolution, activation = gpu_estimates.count(run)
    assert convolution.flops == 2 * (2 * 5 * 8 * 8) * 27
    assert convolution.bytes == 4 * (x.numel() + weight.numel() + 2 * 5 * 64)
    assert activation.name == "open_eg3d::bias_act"
    assert (activation.flops, activation.bytes) == (0, 4 * 2 * 2 * 5 * 64)


def test_a_ring_sends_nearly_twice_the_data() -> None:
    assert gpu_estimates.ring_seconds(1e9, 1, 1e9) == 0
    wanted = 2 * 3 / 4 + 2 * gpu_estimates.LATENCY
    assert gpu_estimates.ring_seconds(1e9, 4, 1e9) == pytest.approx(wanted)


def test_the_documentation_shows_the_tables() -> None:
    """Otherwise: python -m benchmarks.gpu_estimates."""
    kernels, scaling = ((DOCS / f"{name}.md").read_text() for name in ("kernels", "scaling"))
    assert gpu_estimates.table(gpu_estimates.kernel_rows()) in kernels
    assert gpu_estimates.table(gpu_estimates.scaling_rows()) in scaling


@pytest.mark.slow
def test_the_documentation_shows_the_networks() -> None:
    networks = gpu_estimates.network_rows(gpu_estimates.collect(4), 4)
    assert gpu_estimates.table(networks) in (DOCS / "kernels.md").read_text()
