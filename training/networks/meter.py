"""What a network costs, layer by layer, from shapes alone: the networks run on the device `meta`,
where nothing is computed.

Counted are the multiply-adds of convolutions, of matrix products and of the four taps of each
bilinear look-up in a plane. Not counted is what works on each number by itself (activations, noise,
compositing), and the fixed filters of resampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils.ops import library
from training.cameras import LABEL_SIZE
from training.config.settings import ModelConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

BILINEAR_TAPS = 4
BYTES = 4  # a number in fp32

aten = torch.ops.aten


@dataclass
class Layer:
    """One layer for one picture. `calls` is how often it runs; sums are over all calls."""

    name: str
    kind: str
    output: list[int]  # shape of the last call's output
    parameters: int = 0
    multiply_adds: int = 0
    output_bytes: int = 0
    calls: int = 0

    @property
    def parameter_bytes(self) -> int:
        """Memory of the parameters, fp32."""
        return self.parameters * BYTES

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "parameter_bytes": self.parameter_bytes}


def measure_generator(config: ModelConfig, resolution: int | None = None) -> list[Layer]:
    """Layers of the generator as it makes one picture, in the order in which they run.

    Args:
        resolution: Pixels of the volume rendering; none = the model's own.
    """
    with _meta():
        generator = Generator(config)
        z, c = torch.zeros(1, generator.z_dim), torch.zeros(1, LABEL_SIZE)
        return _measure(generator, lambda: generator(z, c, neural_rendering_resolution=resolution))


def measure_discriminator(config: ModelConfig, resolution: int | None = None) -> list[Layer]:
    """Layers of the discriminator as it judges one picture."""
    raw = resolution or config.rendering.resolution
    with _meta():
        discriminator = Discriminator(config)
        image, image_raw = (
            torch.zeros(1, 3, config.resolution, config.resolution),
            torch.zeros(1, 3, raw, raw),
        )
        return _measure(
            discriminator, lambda: discriminator(image, image_raw, torch.zeros(1, LABEL_SIZE))
        )


@contextmanager
def _meta() -> Iterator[None]:
    """Tensors without data, and the plain definitions of all operators, of which every product can
    be seen.
    """
    with torch.device("meta"), library.path("reference"), torch.no_grad():
        yield


def _measure(network: nn.Module, run: Callable[[], Any]) -> list[Layer]:
    with _Meter(network) as meter:
        run()
    return [layer for layer in meter.layers.values() if layer.parameters or layer.multiply_adds]


class _Meter(TorchDispatchMode):
    """Ascribes every product to the innermost module that runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: dict[str, Layer] = {}
        self.running: list[Layer] = []
        self.handles: list[Any] = []
        for name, module in network.named_modules():
            layer = Layer(name or "(rays)", type(module).__name__, [])
            layer.parameters = sum(value.numel() for value in module.parameters(recurse=False))
            self.handles += [
                module.register_forward_pre_hook(self._begin(layer)),
                module.register_forward_hook(self._end(layer)),
            ]

    def _begin(self, layer: Layer) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            self.layers.setdefault(layer.name, layer)
            self.running.append(layer)

        return begin

    def _end(self, layer: Layer) -> Callable[..., None]:
        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.running.pop()
            first = output if isinstance(output, Tensor) else output[0]
            layer.output = list(first.shape)
            layer.output_bytes += first.numel() * first.element_size()
            layer.calls += 1

        return end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running:
            self.running[-1].multiply_adds += multiply_adds(func, args, result)
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()


def multiply_adds(func: Any, args: Any, result: Any) -> int:
    """Multiply-adds of one call of an operator; 0 for those that are not counted."""
    if func in (aten.mm.default, aten.bmm.default):
        return result.numel() * args[0].shape[-1]
    if func in (aten.addmm.default, aten.baddbmm.default):
        return result.numel() * args[1].shape[-1]
    if func is aten.grid_sampler_2d.default:
        return result.numel() * BILINEAR_TAPS
    if func is aten.convolution.default:
        x, weight, transposed, groups = args[0], args[1], args[6], args[8]
        if groups == x.shape[1] > 1:
            return 0  # a filter of resampling
        pixels = (x if transposed else result).shape[2:]
        return x.shape[0] * math.prod(pixels) * weight.numel()
    return 0
