"""Generators as command lines open them: precision, compiled rendering, no waiting on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_eg3d import map_latents, opening, seed_latents
from open_eg3d.opening import compile_rendering, open_generator, sampling_precision
from tests.host_waits import DEVICE, HostWaits
from tests.tiny import ROOT, tiny_config
from torch_utils.ops import library
from training.cameras import cameras_of
from training.config.presets import make_config
from training.networks.generator import Generator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_bf16", "clamp", "chosen"),
    [
        (CPU, True, 256.0, "fp32"),
        (CUDA, True, None, "bf16"),
        (CUDA, False, 256.0, "fp16"),
        (CUDA, False, None, "fp32"),
    ],
)
def test_precision_of_sampling(
    device: torch.device,
    has_bf16: bool,
    clamp: float | None,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "has_fast_bf16", lambda _: has_bf16)
    config = tiny_config()
    config.model.superresolution.conv_clamp = clamp
    assert sampling_precision(Generator(config.model), device) == chosen


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_algorithms_are_chosen_by_time_unless_the_process_is_deterministic(
    is_deterministic: bool,
) -> None:
    """As is a training with --deterministic, which opens its snapshots to measure them."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        open_generator(ROOT / "models" / "heads64.pkl", CPU)
        assert torch.backends.cudnn.benchmark != is_deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


def test_what_cuda_shows_by_default_is_within_40_db(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = open_generator(ROOT / "models" / "heads64.pkl", CPU)
    monkeypatch.setattr(opening, "sampling_precision", lambda *_: "bf16")
    rounded = open_generator(ROOT / "models" / "heads64.pkl", CPU, "auto")
    ws = map_latents(exact, seed_latents(exact, range(4)), truncation_psi=0.7)
    c = cameras_of(exact).frontal_label().expand(len(ws), -1)
    with torch.no_grad():
        for first, second in zip(
            exact.synthesis(ws, c)[:2], rounded.synthesis(ws, c), strict=False
        ):
            assert 10 * torch.log10(4 / (first - second).square().mean()) > 40
            assert not torch.equal(first, second)


def test_a_frame_of_cached_planes_waits_for_nothing() -> None:
    """So that it can become a CUDA graph."""
    generator = Generator(make_config("ffhq", 512, "published").model).eval().to(DEVICE)
    planes = torch.zeros(1, 3, 32, 256, 256, device=DEVICE)
    ws = torch.zeros(1, generator.num_ws, generator.w_dim, device=DEVICE)
    with library.path("reference"), HostWaits(), torch.no_grad():
        shown = generator.render(planes, ws, torch.zeros(1, 25, device=DEVICE), 64)
    assert shown.image.shape == (1, 3, 512, 512)


def test_compiled_rendering_is_one_graph_and_shows_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = list[tuple[str, bool]]()

    def compile_(function: Any, mode: str, fullgraph: bool) -> Any:
        made.append((mode, fullgraph))
        return torch._dynamo.optimize("aot_eager", nopython=fullgraph)(function)

    generator = Generator(tiny_config().model).eval().requires_grad_(False)
    ws, c = torch.randn(1, generator.num_ws, generator.w_dim), torch.zeros(1, 25)
    c[:, :16], c[:, [16, 20, 24]] = torch.eye(4).flatten(), 2.0
    planes = generator.planes(ws)
    plain = generator.render(planes, ws, c)
    monkeypatch.setattr(torch, "compile", compile_)
    compile_rendering(generator)
    first = generator.render(planes, ws, c)
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)
    generator.render(planes, ws, c)
    assert made == [("reduce-overhead", True)]
