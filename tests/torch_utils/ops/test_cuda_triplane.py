"""CUDA kernels of render_rays and decode_points without a GPU: standalone programs, fed from files,
against plain PyTorch.

The sizes lie around the ends of what the kernels work in: 8 rays a block, 16, 32 or 64 samples a
tile, 32 lanes a warp, packs of four numbers, 128 threads. Under AddressSanitizer and
UndefinedBehaviorSanitizer all of them, under ThreadSanitizer a few.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import cuda_resources
from dnnlib import files
from tests.cuda_on_cpu import SHIM, build_program, run_program
from torch_utils.ops.decode_points import SHARED_MEMORY, DecoderWeights, fits_gpu
from training.config.settings import RenderingConfig
from training.rendering.renderer import Rays, _decode_composable, _render_composable, fused_weights
from training.rendering.sampling import Offsets

# in the order of cuda/types.h
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# of the planes' gradient
ROUNDING = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 0.0}


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one run; `rays` counts points where there are no coarse samples."""

    batch: int = 2
    rays: int = 9
    coarse: int = 5
    fine: int = 6
    channels: int = 8
    hidden: int = 16
    colors: int = 4
    size: tuple[int, int] = (7, 9)
    dtype: torch.dtype = torch.float32
    layout: str = "packed"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    limits: str = "near"
    fixed_offsets: bool = False
    gradients: str = "all"  # or "none" of the colours
    stop: float = 0.0
    strange: float | None = None  # a number that one texel has

    @property
    def compute(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def outputs(self) -> int:
        """How many results come before the gradients."""
        return 2 if self.coarse == 0 else 3

    @property
    def config(self) -> RenderingConfig:
        return dataclasses.replace(RenderingConfig(box_warp=1.1, density_gain=1.5), **self.settings)


RELEASED: dict[str, Any] = {"plane_axes": "released", "fine_sampling": "released"}
RAYS = {
    "doubles": Case(dtype=torch.float64, settings={"background": (0.3, 0.6, 0.9)}),
    "doubles of the released kind": Case(dtype=torch.float64, settings=RELEASED, limits="missed"),
    "doubles beside the box": Case(
        dtype=torch.float64,
        rays=17,
        fine=0,
        limits="missed",
        settings={"background": (1.0, 1.0, 1.0)},
    ),
    "one ray": Case(batch=1, rays=1, coarse=2, fine=1, channels=1, hidden=1, colors=1, size=(1, 1)),
    "eight rays, a warp of samples": Case(
        rays=8, coarse=32, fine=32, channels=32, hidden=64, colors=32
    ),
    "a warp and one": Case(
        batch=1, rays=7, coarse=33, fine=34, channels=33, hidden=5, colors=33, size=(16, 3)
    ),
    "coarse samples alone": Case(
        rays=10, coarse=31, fine=0, channels=3, hidden=70, colors=3, limits="missed"
    ),
    "fewer than a bin": Case(coarse=3, fine=65, settings=RELEASED),
    "128 samples, half precision": Case(
        batch=1, rays=5, coarse=64, fine=64, channels=16, hidden=32, dtype=torch.float16
    ),
    "bfloat16": Case(
        dtype=torch.bfloat16, channels=12, settings={"background": (0.1, 0.5, 0.9)}, limits="missed"
    ),
    "odd strides": Case(channels=5, layout="odd", dtype=torch.float16),
    "strides without packs": Case(channels=8, layout="odd"),
    "a picture of one sample": Case(batch=3, layout="expanded", fixed_offsets=True),
    "many features": Case(batch=1, rays=3, channels=130, hidden=20, colors=40),
    "the largest decoder": Case(
        batch=1, rays=2, coarse=9, fine=9, channels=44, hidden=128, colors=46
    ),
    "limits that run backwards": Case(limits="backwards"),
    "gradients of depth and alpha": Case(gradients="none"),
    "samples near the surface": Case(rays=10, coarse=12, fine=0, limits="tight"),
    "samples near the surface, doubles": Case(
        dtype=torch.float64, coarse=17, fine=0, limits="tight"
    ),
    "rays that end early": Case(rays=20, coarse=40, fine=40, stop=2e-5),
    "a NaN": Case(strange=float("nan")),
    "an infinity": Case(strange=float("inf"), dtype=torch.float16),
}
POINTS = {
    "doubles": Case(dtype=torch.float64, coarse=0, rays=66),
    "doubles of the released kind": Case(dtype=torch.float64, coarse=0, rays=33, settings=RELEASED),
    "one point": Case(coarse=0, batch=1, rays=1, channels=1, hidden=1, colors=1, size=(1, 5)),
    "a tile": Case(coarse=0, batch=1, rays=64, channels=32, hidden=64, colors=32),
    "two samples in a tile": Case(
        coarse=0, rays=65, channels=17, hidden=9, colors=5, dtype=torch.bfloat16, layout="odd"
    ),
    "without colours": Case(coarse=0, rays=40, gradients="none"),
    "a NaN": Case(coarse=0, rays=40, strange=float("nan")),
}
CASES = {f"rays, {name}": case for name, case in RAYS.items()} | {
    f"points, {name}": case for name, case in POINTS.items()
}
RACED = (
    "rays, one ray",
    "rays, bfloat16",
    "rays, strides without packs",
    "rays, rays that end early",
    "points, two samples in a tile",
)


# --------------------------------------------------------------------------------------------------
# A case's tensors


@dataclass
class Inputs:
    """All in double precision, as the reference takes them."""

    planes: Tensor
    weights: DecoderWeights
    rays: Rays | None
    offsets: Offsets | None
    points: Tensor
    grads: tuple[Tensor | None, ...]

    def leaves(self) -> list[Tensor]:
        places = [self.points] if self.rays is None else list(self.rays[:4])
        return [self.planes, *self.weights, *places]


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return (
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.compute).double()
        )

    def uniform(*shape: int) -> Tensor:
        return (
            torch.rand(*shape, generator=generator, dtype=torch.float64).to(case.compute).double()
        )

    n, r = case.batch, case.rays
    planes = normal(1 if case.layout == "expanded" else n, 3, case.channels, *case.size).expand(
        n, -1, -1, -1, -1
    )
    planes = planes.to(case.dtype).double()
    if case.strange is not None:
        planes[0, :, :, case.size[0] // 2, case.size[1] // 2] = case.strange
    scale = case.channels**-0.5, case.hidden**-0.5
    weights = DecoderWeights(
        normal(case.hidden, case.channels) * scale[0],
        normal(case.hidden),
        normal(1 + case.colors, case.hidden) * scale[1],
        normal(1 + case.colors),
    )
    weights = DecoderWeights(*(w.to(case.compute).double() for w in weights))
    points = (uniform(n, r, 3) * 1.4 - 0.7).to(case.compute).double()
    none = case.gradients == "none"
    if case.coarse == 0:
        return Inputs(
            planes,
            weights,
            None,
            None,
            points,
            (normal(n, r, 1), None if none else normal(n, r, case.colors)),
        )
    offsets = Offsets(uniform(n, r, case.coarse), uniform(n, r, case.fine) if case.fine else None)
    if case.fixed_offsets:
        coarse, fine = (
            None if u is None else u[:1, :1].sort().values.expand(u.shape) for u in offsets
        )
        assert coarse is not None
        offsets = Offsets(coarse, fine)
    if case.limits == "tight":  # places of their own for every ray, most of them close together
        places = uniform(n, r, case.coarse).pow(3).sort(dim=-1).values
        offsets = Offsets(places * (case.coarse - 1) - torch.arange(case.coarse), None)
    grads = (None if none else normal(n, r, case.colors), normal(n, r, 1) * 0.3, normal(n, r, 1))
    return Inputs(planes, weights, make_rays(case, normal, uniform), offsets, points, grads)


def make_rays(case: Case, normal: Any, uniform: Any) -> Rays:
    n, r = case.batch, case.rays
    directions = F.normalize(normal(n, r, 3), dim=-1).to(case.compute).double()
    origins = ((uniform(n, r, 3) - 0.5) * 0.6 - 2 * directions).to(case.compute).double()
    near, far = 1.5 + 0.1 * uniform(n, r, 1), 2.4 + 0.2 * uniform(n, r, 1)
    near, far = near.to(case.compute).double(), far.to(case.compute).double()
    if case.limits == "backwards":
        near, far = far, near
    hit = uniform(n, r, 1) < 0.6 if case.limits == "missed" else None
    return Rays(origins, directions, near, far, hit)


def expected_results(case: Case, inputs: Inputs) -> list[Tensor]:
    """Outputs and gradients of the plain path in double precision."""
    leaves = [leaf.clone().requires_grad_() for leaf in inputs.leaves()]
    weights = DecoderWeights(*leaves[1:5])

    def decoder(features: Tensor) -> tuple[Tensor, Tensor]:
        x = F.linear(F.softplus(F.linear(features, weights.w0, weights.b0)), weights.w1, weights.b1)
        return x[..., :1], torch.sigmoid(x[..., 1:]) * 1.002 - 0.001

    if inputs.rays is None:
        outputs: tuple[Tensor, ...] = _decode_composable(leaves[0], leaves[5], decoder, case.config)
    else:
        assert inputs.offsets is not None
        rays = Rays(leaves[5], leaves[6], leaves[7], leaves[8], inputs.rays.hit)
        outputs = tuple(_render_composable(leaves[0], decoder, rays, inputs.offsets, case.config))
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, inputs.grads, strict=True)
        if grad is not None
    ]
    loss = torch.stack([(output * grad).sum() for output, grad in pairs]).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        *(o.detach() for o in outputs),
        *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)),
    ]


# --------------------------------------------------------------------------------------------------
# Files


def texels(case: Case, planes: Tensor) -> tuple[Tensor, tuple[int, ...], int]:
    """Planes in memory: all numbers of it, strides of samples, planes, rows and columns, and where
    the first texel is.
    """
    last = planes[:1] if case.layout == "expanded" else planes
    lying = last.to(case.dtype).permute(0, 1, 3, 4, 2).contiguous()
    if case.layout != "odd":
        n, p, h, w, _ = lying.stride()
        return lying.flatten(), (0 if case.layout == "expanded" else n, p, h, w), 0
    gap, first = 3, 1  # between texels, and in front of all
    spread = F.pad(lying.double(), (0, gap)).to(case.dtype)
    n, p, h, w, _ = spread.stride()
    return (
        torch.cat([spread.new_zeros(first), spread.flatten()[: spread.numel() - gap]]),
        (n, p, h, w),
        first,
    )


def write_case(case: Case, inputs: Inputs, path: Path) -> None:
    memory, strides, first = texels(case, inputs.planes)
    config, is_released = case.config, case.config.plane_axes == "released"
    integers = [
        int(case.coarse > 0), DTYPES.index(case.dtype), case.batch, first, case.channels,
        *case.size, *strides, int(is_released), case.hidden, case.colors, case.rays,
    ]  # fmt: skip
    numbers = [config.box_warp, config.density_gain]
    arrays: list[Tensor | None] = [memory, *(w.to(case.compute) for w in inputs.weights)]
    if inputs.rays is None:
        arrays += [inputs.points, *inputs.grads]
    else:
        assert inputs.offsets is not None
        offsets = (
            inputs.offsets
            if case.fixed_offsets
            else tuple(None if u is None else u.contiguous() for u in inputs.offsets)
        )
        integers += [
            case.coarse,
            case.fine,
            int(config.fine_sampling == "released"),
            int(config.background is not None),
        ]
        integers += [stride for u in offsets for stride in ((0, 0, 0) if u is None else u.stride())]
        numbers += [*(config.background or (0, 0, 0)), case.stop]
        rows = [None if u is None else u[:1, :1] if case.fixed_offsets else u for u in offsets]
        arrays += [*inputs.rays, *rows, *inputs.grads]
    with open(path, "wb") as file:
        file.write(struct.pack(f"<q{len(integers)}q", len(integers), *integers))
        file.write(struct.pack(f"<q{len(numbers)}d", len(numbers), *numbers))
        for array in arrays:
            content = (
                b""
                if array is None
                else to_bytes(
                    array
                    if array is memory or array.dtype == torch.bool
                    else array.to(case.compute)
                )
            )
            file.write(struct.pack("<q", len(content)) + content)


def to_bytes(x: Tensor) -> bytes:
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def read_results(case: Case, path: Path, expected: list[Tensor]) -> list[Tensor]:
    """The program's arrays in the shapes of what is expected."""
    content, place, arrays = path.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack_from("<q", content, place)
        arrays.append(np.frombuffer(content, np.uint8, length, place + 8))
        place += 8 + length
    outputs = case.outputs
    tensors = [
        torch.from_numpy(a.copy()).view(case.dtype if i == outputs else case.compute)
        for i, a in enumerate(arrays)
    ]
    packed = tensors.pop(outputs + 1)
    channels_last = (case.batch, 3, *case.size, case.channels)
    tensors[outputs] = tensors[outputs].view(channels_last).permute(0, 1, 4, 2, 3)
    tensors[outputs + 1 : outputs + 1] = unpack(case, packed)
    return [t.reshape(e.shape) for t, e in zip(tensors, expected, strict=True)]


def unpack(case: Case, packed: Tensor) -> list[Tensor]:
    """Gradients of w0, b0, w1 and b1 from the kernels' layout (csrc/cuda/triplane/operands.h)."""
    whole = [(count + 3) // 4 * 4 for count in (case.channels, case.hidden, case.colors)]
    row_c, row_h = (n if n // 4 % 2 == 1 else n + 4 for n in whole[:2])
    w0, w1, density, b0, b1, bias, _ = packed.split(
        [whole[1] * row_c, whole[2] * row_h, row_h, whole[1], whole[2], 1, 3]
    )
    of_w1 = torch.cat([density.view(1, row_h), w1.view(whole[2], row_h)[: case.colors]])[
        :, : case.hidden
    ]
    return [
        w0.view(-1, row_c)[: case.hidden, : case.channels] / 3,
        b0[: case.hidden],
        of_w1,
        torch.cat([bias, b1[: case.colors]]),
    ]


# --------------------------------------------------------------------------------------------------
# Tests


def triplane_program(sanitizer: str) -> Path:
    return build_program(
        SHIM / "triplane_main.cpp",
        ["decode_points", "render_rays"],
        sanitizer,
        files.cache_dir() / "ops" / "programs",
    )


def run_cases(
    names: list[str], sanitizer: str, folder: Path, again: bool = False
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """What the kernels compute and what is expected, for each case; one program runs them all, with
    `again` twice.
    """
    program = triplane_program(sanitizer)
    paths, expected = [], {}
    for i, name in enumerate(names):
        inputs = make_inputs(CASES[name])
        write_case(CASES[name], inputs, folder / f"{i}.case")
        for ending in ("result", "again") if again else ("result",):
            paths += [str(folder / f"{i}.case"), str(folder / f"{i}.{ending}")]
        expected[name] = expected_results(CASES[name], inputs)
    run = run_program(program, *paths)
    assert run.returncode == 0, run.stderr[:4000]
    assert run.stdout == ""
    return {
        name: (read_results(CASES[name], folder / f"{i}.result", expected[name]), expected[name])
        for i, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def under_address_sanitizer(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    return run_cases(list(CASES), "address", tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_is_expected(under_address_sanitizer: Any, name: str) -> None:
    """Outputs, and gradients of planes, decoder and rays or points."""
    for place, (result, truth) in enumerate(zip(*under_address_sanitizer[name], strict=True)):
        check_close(CASES[name], place, result.double(), truth)


def check_close(case: Case, place: int, result: Tensor, truth: Tensor) -> None:
    """Within a share of the largest number. Where the reference is not finite the result is not
    either.
    """
    is_finite = truth.isfinite()
    if case.strange is not None:
        assert not result[~is_finite].isfinite().any(), place
    else:
        assert is_finite.all()
    largest = truth[is_finite].abs().max().item() if is_finite.any() else 0.0
    tolerance = 1e-8 if case.compute == torch.float64 else 3e-4
    tolerance += (1e-4 if case.stop else 0) + (ROUNDING[case.dtype] if place == case.outputs else 0)
    limit = tolerance * max(largest, 0.05)  # for the least are differences of larger ones
    torch.testing.assert_close(
        result[is_finite],
        truth[is_finite],
        rtol=0,
        atol=limit,
        msg=lambda text: f"number {place}: {text}",
    )


def decoder(case: Case, more: int = 0) -> DecoderWeights:
    hidden = case.hidden + more
    shapes = ((hidden, case.channels), (hidden,), (1 + case.colors, hidden), (1 + case.colors,))
    return DecoderWeights(*(torch.empty(shape, dtype=case.compute) for shape in shapes))


# Features from 8 to 64 and hidden units from 16 to 128, forward and backward of both operators.
SWEPT = {
    (channels, hidden, dtype, samples): Case(
        batch=1,
        rays=1,
        coarse=samples,
        fine=samples,
        channels=channels,
        hidden=hidden,
        colors=32,
        size=(2, 2),
        dtype=dtype,
    )
    for channels in range(8, 65, 8)
    for hidden in (*range(16, 129, 16), 104)
    for dtype in (torch.float32, torch.float64)
    for samples in (0, 2)
}


def test_every_size_of_decoder_is_launched_or_known_not_to_fit(tmp_path: Path) -> None:
    """The shim refuses a launch with more shared memory than the least GPU gives a block, or than
    was asked for. Planes in half precision take what those in float take.
    """
    paths = ["--launch"]
    for i, case in enumerate(SWEPT.values()):
        write_case(case, make_inputs(case), tmp_path / f"{i}.case")
        paths += [str(tmp_path / f"{i}.case"), str(tmp_path / f"{i}.result")]
    run = run_program(triplane_program("address"), *paths)
    assert run.returncode == 0, run.stderr[:4000]
    refused = [line.split(": ", 1) for line in run.stdout.splitlines()]
    unfit = {i for i, case in enumerate(SWEPT.values()) if not fits_gpu(decoder(case))}
    assert {int(Path(path).stem) for path, _ in refused} == unfit
    assert 0 < len(unfit) < len(SWEPT) / 2
    assert all("does not fit into a GPU's shared memory" in reason for _, reason in refused)


def test_a_decoder_that_does_not_fit_is_rendered_by_plain_pytorch_and_told_once() -> None:
    unfit = decoder(Case(channels=64, hidden=128, colors=32))
    describe = SimpleNamespace(two_layer_weights=lambda: unfit)
    with FakeTensorMode():
        planes = torch.empty(1, 3, 64, 4, 4, device="cuda")
        points = torch.empty(1, 5, 3, device="cuda")
    with pytest.warns(RuntimeWarning) as told:
        answers = [fused_weights(describe, planes, points) for _ in range(2)]
    assert answers == [None, None]
    (line,) = (str(warning.message) for warning in told)
    assert "64 features, 128 hidden units and 32 colours does not fit" in line


def test_what_kernels_ask_for_is_what_every_gpu_has() -> None:
    """A block may have all of a multiprocessor of sm_75, and all but 1 KB of the others."""
    for architecture, (kilobytes, _) in cuda_resources.MULTIPROCESSORS.items():
        assert (kilobytes - (architecture != "75")) << 10 >= SHARED_MEMORY


def test_which_decoders_fit_is_known() -> None:
    """The largest of the cases does, and one hidden unit more would be too much."""
    assert all(fits_gpu(decoder(case)) for case in CASES.values())
    assert not fits_gpu(decoder(RAYS["the largest decoder"], more=1))
    published = dataclasses.replace(RAYS["doubles"], channels=32, hidden=64, colors=32)
    assert fits_gpu(decoder(published))


@pytest.mark.usefixtures("under_address_sanitizer")
def test_results_are_the_same_bits_in_whichever_order_blocks_and_threads_come(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over texels are of integers, those over samples in a fixed order."""
    found = []
    for order in (None, "1", "2"):
        if order is not None:
            monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        folder = tmp_path_factory.mktemp("order")
        run_cases(list(RACED), "address", folder)
        found.append([(folder / f"{i}.result").read_bytes() for i in range(len(RACED))])
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.slow
def test_no_thread_races_and_results_repeat(tmp_path: Path) -> None:
    """Real threads, two blocks at a time, watched by ThreadSanitizer: the expected values, and the
    same bits however they come about.
    """
    for name, (results, expected) in run_cases(list(RACED), "thread", tmp_path, again=True).items():
        for place, (result, truth) in enumerate(zip(results, expected, strict=True)):
            check_close(CASES[name], place, result.double(), truth)
    for i in range(len(RACED)):
        assert (tmp_path / f"{i}.result").read_bytes() == (tmp_path / f"{i}.again").read_bytes()
