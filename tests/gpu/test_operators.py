"""Operators on a GPU beside their references in fp64 on the CPU; `make gpu-check` runs these tests.

Without a GPU they are skipped, but for `python -m tests.cuda_on_cpu tests/gpu`, where the same
kernels run on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_utils.ops import bias_act, filtered_lrelu, library, setup_filter, upfirdn2d
from torch_utils.ops.decode_points import DecoderWeights, decode_points, random_scene
from torch_utils.ops.modulation import modulated_lrelu, scale_channels
from torch_utils.ops.render_rays import render_rays

_built = library.details()
IS_SHIM = _built is not None and "cuda_on_cpu" in _built.library
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and not IS_SHIM:
    pytest.skip("there is no CUDA device", allow_module_level=True)
DEVICE = "cpu" if IS_SHIM else "cuda"
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="there is no CUDA device")
DTYPES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-10}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
Operator = Callable[..., Tensor]

BLUR = setup_filter([1, 3, 3, 1])
TWELVE = setup_filter([1, 2, 4, 7, 9, 10, 10, 9, 7, 4, 2, 1], separable=True)
SYMMETRIC = setup_filter([1, 4, 8, 9, 8, 4, 1], separable=True)


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE)


# Name, shapes of the tensors that gradients are asked for, and the operator.
OPERATORS: dict[str, tuple[tuple[tuple[int, ...], ...], Operator]] = {
    "bias_act lrelu": (
        ((2, 20, 9, 33), (20,)),
        lambda x, b: bias_act(x, b, act="lrelu", clamp=1.5),
    ),
    "bias_act swish": (((2, 20, 9, 33), (20,)), lambda x, b: bias_act(x, b, act="swish")),
    "upfirdn2d blur": (((2, 20, 19, 33),), lambda x: upfirdn2d(x, BLUR, padding=2)),
    "upfirdn2d up": (
        ((2, 20, 19, 33),),
        lambda x: upfirdn2d(x, BLUR, up=2, padding=(2, 1, 2, 1), gain=4),
    ),
    "upfirdn2d down": (((2, 20, 19, 33),), lambda x: upfirdn2d(x, BLUR, down=2, padding=1)),
    "upfirdn2d separable": (
        ((2, 20, 19, 33),),
        lambda x: upfirdn2d(x, SYMMETRIC, up=(2, 3), down=2, padding=(5, -2, 4, 9)),
    ),
    "filtered_lrelu": (
        ((2, 20, 9, 17), (20,)),
        lambda x, b: filtered_lrelu(x, SYMMETRIC, BLUR, b, up=2, down=2, padding=5),
    ),
    "modulated_lrelu": (((2, 20, 9, 33), (2, 20), (2, 1, 9, 33), (20,)), modulated_lrelu),
    "scale_channels": (((2, 20, 9, 33), (2, 20)), scale_channels),
}


def draw(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def results(function: Operator, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients of all inputs, in fp64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    weights = (
        torch.linspace(-1, 1, output.numel(), dtype=torch.float64)
        .cos()
        .view(output.shape)
        .to(output)
    )
    return [
        value.detach().double().cpu()
        for value in (output, *torch.autograd.grad(output, leaves, weights))
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", OPERATORS)
def test_outputs_and_gradients(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    shapes, function = OPERATORS[name]
    rounded = [tensor.to(dtype) for tensor in draw(shapes)]
    with library.path("reference"):
        expected = results(function, [tensor.double() for tensor in rounded])
    inputs = [
        on_device(tensor).contiguous(memory_format=layout)
        if tensor.ndim == 4
        else on_device(tensor)
        for tensor in rounded
    ]
    assert library.use_kernels(inputs[0])
    for i, (result, value) in enumerate(zip(results(function, inputs), expected, strict=True)):
        differences = (result - value).abs() / value.abs().max()
        # In half precision, rounding moves single numbers across the bend or the clamp, and their
        # gradients with them.
        is_rounded = dtype in (torch.float16, torch.bfloat16) and i > 0
        assert differences.mean() < DTYPES[dtype]
        assert is_rounded or differences.max() < 10 * DTYPES[dtype]


@pytest.mark.parametrize(
    "name",
    ["bias_act swish", "upfirdn2d up", "filtered_lrelu", "modulated_lrelu", "scale_channels"],
)
def test_second_derivatives(name: str) -> None:
    shapes, function = OPERATORS[name]
    small = tuple(
        (1, 2, 4, 4)
        if len(shape) == 4 and shape[1] > 1
        else (1, 1, 4, 4)
        if len(shape) == 4
        else (*shape[:-1], 2)
        for shape in shapes
    )
    small = tuple((1, 2) if len(shape) == 2 else shape for shape in small)
    inputs = tuple(on_device(tensor).requires_grad_() for tensor in draw(small))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_opcheck() -> None:
    x, bias = on_device(torch.randn(2, 3, 5, 6)), on_device(torch.randn(3))
    torch.library.opcheck(
        torch.ops.open_eg3d.bias_act, (x.requires_grad_(), bias, 1, "lrelu", 0.2, 1.0, 256.0)
    )
    torch.library.opcheck(
        torch.ops.open_eg3d.upfirdn2d,
        (x, on_device(BLUR), [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0),
    )
    torch.library.opcheck(
        torch.ops.open_eg3d.filtered_lrelu,
        (
            x,
            on_device(SYMMETRIC),
            on_device(BLUR),
            bias,
            2,
            2,
            [5, 5, 5, 5],
            1.4,
            0.2,
            None,
            False,
            True,
        ),
    )


# Of the published FFHQ-512 networks, beside the reference in fp64 on the CPU.
PRODUCTION: dict[str, tuple[tuple[tuple[int, ...], ...], torch.dtype, Operator]] = {
    "bias_act": (
        ((1, 128, 512, 512), (128,)),
        torch.float16,
        lambda x, b: bias_act(x, b, act="lrelu", clamp=256),
    ),
    "upfirdn2d up": (
        ((1, 96, 256, 256),),
        torch.float32,
        lambda x: upfirdn2d(x, BLUR, up=2, padding=(2, 1, 2, 1), gain=4),
    ),
    "upfirdn2d blur": (
        ((1, 128, 513, 513),),
        torch.float16,
        lambda x: upfirdn2d(x, BLUR, padding=1),
    ),
    "upfirdn2d down": (
        ((1, 64, 512, 512),),
        torch.float16,
        lambda x: upfirdn2d(x, BLUR, down=2, padding=1),
    ),
    "modulated_lrelu": (
        ((1, 128, 512, 512), (1, 128), (1, 1, 512, 512), (128,)),
        torch.float16,
        modulated_lrelu,
    ),
    "scale_channels": (((1, 256, 256, 256), (1, 256)), torch.float16, scale_channels),
    "filtered_lrelu": (
        ((1, 32, 532, 532), (32,)),
        torch.float16,
        lambda x, b: filtered_lrelu(x, TWELVE, TWELVE, b, up=2, down=2, padding=11),
    ),
}


@needs_gpu
@pytest.mark.parametrize("name", PRODUCTION)
def test_production_sizes(name: str) -> None:
    shapes, dtype, function = PRODUCTION[name]
    rounded = [tensor.to(dtype) for tensor in draw(shapes)]
    with library.path("reference"):
        expected = results(function, [tensor.double() for tensor in rounded])
    inputs = [
        on_device(tensor).contiguous(memory_format=torch.channels_last)
        if tensor.ndim == 4
        else on_device(tensor)
        for tensor in rounded
    ]
    assert library.use_kernels(inputs[0])
    for result, value in zip(results(function, inputs), expected, strict=True):
        differences = (result - value).abs() / value.abs().max()
        assert differences.mean() < DTYPES[dtype]


@needs_gpu
@pytest.mark.parametrize("rendered", [False, True], ids=["points", "rays"])
def test_the_published_decoder(rendered: bool) -> None:
    """32 features, 64 hidden units, a density and 32 colours, planes of 256 pixels: values and
    gradients against the CPU's kernels.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    planes = normal(1, 3, 256, 256, 32).permute(0, 1, 4, 2, 3)
    weights = [normal(64, 32) / 6, normal(64), normal(33, 64) / 8, normal(33)]
    directions = torch.nn.functional.normalize(normal(1, 4096, 3), dim=-1)
    points = torch.rand(1, 4096, 3, generator=generator) - 0.5
    offsets = [torch.rand(1, 4096, 48, generator=generator) for _ in range(2)]

    def run(device: str) -> list[Tensor]:
        leaves = [tensor.to(device).requires_grad_() for tensor in (planes, *weights)]
        decoder = DecoderWeights(*leaves[1:])
        outputs: tuple[Tensor, ...]
        if rendered:
            near, far = (torch.full((1, 4096, 1), limit, device=device) for limit in (2.25, 3.3))
            along, coarse, fine = (x.to(device) for x in (directions, *offsets))
            origins = -2.7 * along
            outputs = render_rays(
                leaves[0], decoder, origins, along, near, far, None, coarse, fine, box_warp=1.0
            )
        else:
            outputs = decode_points(leaves[0], decoder, points.to(device), box_warp=1.0)
        loss = torch.stack([output.square().mean() for output in outputs]).sum()
        return [x.detach().cpu() for x in (*outputs, *torch.autograd.grad(loss, leaves))]

    for result, expected in zip(run(DEVICE), run("cpu"), strict=True):
        largest = float(expected.abs().max())
        assert (result - expected).abs().mean() < 1e-4 * largest
        assert (result - expected).abs().max() < 2e-2 * largest  # fine samples at an edge


def rays() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(2, 70, 3, generator=generator), dim=-1)
    limits = (torch.full((2, 70, 1), 1.4), torch.full((2, 70, 1), 2.6))
    offsets = (
        torch.rand(2, 70, 20, generator=generator),
        torch.rand(2, 70, 24, generator=generator),
    )
    return [-2 * directions, directions, *limits, *offsets]


def test_rendering_of_rays() -> None:
    """Against a CPU kernel where there is a GPU; on the CPU, that it runs and its gradients are
    finite.
    """

    def render(device: str) -> list[Tensor]:
        planes, decoder = random_scene()
        leaves = [tensor.to(device).requires_grad_() for tensor in (planes, *decoder)]
        origins, directions, near, far, coarse, fine = (tensor.to(device) for tensor in rays())
        outputs = render_rays(
            leaves[0],
            DecoderWeights(*leaves[1:]),
            origins,
            directions,
            near,
            far,
            None,
            coarse,
            fine,
            box_warp=1.2,
        )
        gradients = torch.autograd.grad(
            torch.stack([o.square().mean() for o in outputs]).sum(), leaves
        )
        return [value.detach().cpu() for value in (*outputs, *gradients)]

    for result, expected in zip(render(DEVICE), render("cpu"), strict=True):
        assert result.isfinite().all()
        torch.testing.assert_close(
            result, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3
        )


def test_decoding_of_points() -> None:
    planes, decoder = random_scene()
    points = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.7
    expected = decode_points(planes, decoder, points, box_warp=1.2)
    moved = DecoderWeights(*(tensor.to(DEVICE) for tensor in decoder))
    for result, value in zip(
        decode_points(planes.to(DEVICE), moved, points.to(DEVICE), box_warp=1.2),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(result.cpu(), value, atol=1e-4, rtol=1e-4)


@needs_gpu
def test_the_current_stream_is_used() -> None:
    """Work on a stream of its own waits for what that stream still does, and not for others."""
    stream = torch.cuda.Stream()
    x = torch.zeros(1 << 22, device="cuda").view(1, 4, 1024, 1024)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
        result = bias_act(x, torch.ones(4, device="cuda"), act="lrelu", gain=1.0)
    assert not stream.query(), "the operator waited for the device"
    stream.synchronize()
    assert bool((result == 2).all())


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_device_than_the_current_one() -> None:
    x = torch.randn(1, 4, 8, 8, device="cuda:1")
    result = upfirdn2d(bias_act(x, act="lrelu"), BLUR, padding=2)
    assert result.device == x.device
    with library.path("reference"):
        torch.testing.assert_close(
            result.cpu(), upfirdn2d(bias_act(x.cpu(), act="lrelu"), BLUR, padding=2)
        )
    with pytest.raises(RuntimeError, match=r"operands on two devices|same device"):
        torch.ops.open_eg3d.bias_act(x, torch.zeros(4, device="cuda:0"), 1, "lrelu", 0.2, 1.0, None)


@needs_gpu
@pytest.mark.skipif(
    HAS_GPU and torch.cuda.mem_get_info()[0] < 12 << 30, reason="needs 12 GB of free GPU memory"
)
def test_more_than_two_to_the_31_numbers() -> None:
    x = torch.full((3, 1 << 15, 1 << 15), -1.0, dtype=torch.float16, device="cuda").unsqueeze(0)
    bias = torch.tensor([0.0, 1.0, 3.0], device="cuda")
    result = bias_act(x, bias, act="lrelu", gain=1.0, alpha=0.5)
    assert result[0, 0, 0, 0] == -0.5
    assert result[0, 2, -1, -1] == 2
    assert [float(result[0, c].float().mean()) for c in range(3)] == [-0.5, 0.0, 2.0]
