"""The generator as two ONNX graphs: latent to planes, once a person, and planes to a picture, once
a camera. The first one also comes in two halves, between which latents can be mixed.

The composable rendering path is traced (EG3D, section 3.3), with fixed sample offsets. Graphs are
made for any number of samples, each with its camera, in fp32, at one rendering resolution.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from torch_utils.ops import library
from training.cameras import LABEL_SIZE
from training.networks.generator import Generator

OPSET = 23
PLANES_INPUTS, PLANES_OUTPUTS = ("z", "c", "truncation_psi"), ("planes", "ws")
IMAGE_INPUTS, IMAGE_OUTPUTS = ("planes", "ws", "c"), ("image", "image_raw", "image_depth")
EXAMPLES = 2  # samples while a graph is traced; a single one would pass for a fixed size


class PlanesGraph(nn.Module):
    """Latent and conditioning camera to planes, and to the latents that the super-resolution
    needs.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, c: Tensor, truncation_psi: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, z_dim), c (N, 25), truncation_psi () -> planes (N, 3, C, H, W), ws (N, num_ws,
        w_dim).
        """
        # Truncation is an input of the graph, so it cannot be left out for a psi of 1 as `mapping`
        # does.
        w_avg = self.generator.backbone.mapping.w_avg
        ws = w_avg + truncation_psi * (self.generator.mapping(z, c) - w_avg)
        return self.generator.planes(ws), ws


class MappingGraph(nn.Module):
    """Latent and conditioning camera to the latents of the layers, without truncation."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z (N, z_dim), c (N, 25) -> ws (N, num_ws, w_dim)."""
        return self.generator.mapping(z, c)


class SynthesisGraph(nn.Module):
    """Latents of the layers to planes."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, ws: Tensor) -> Tensor:
        """ws (N, num_ws, w_dim) -> planes (N, 3, C, H, W)."""
        return self.generator.planes(ws)


class ImageGraph(nn.Module):
    """Planes, their latents and a camera to pictures, whose rendering has `resolution` pixels a
    side; None = the generator's own.
    """

    def __init__(self, generator: Generator, resolution: int | None = None) -> None:
        super().__init__()
        self.generator, self.resolution = generator, resolution

    def forward(self, planes: Tensor, ws: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """planes (N, 3, C, H, W), ws (N, num_ws, w_dim), c (N, 25) -> image, image_raw,
        image_depth, as `Generator.render`.
        """
        pictures = self.generator.render(planes, ws, c, self.resolution)
        return pictures.image, pictures.image_raw, pictures.image_depth


def write_planes_graph(path: str | os.PathLike[str], generator: Generator) -> None:
    """Write the graph of `PlanesGraph`.

    Raises:
        UserError: if the extra `onnx` is not installed, the exporter refuses the network, or `path`
            cannot be written.
    """
    inputs = (*_latent_and_camera(generator), torch.ones(()))
    _write(path, PlanesGraph(generator), inputs, PLANES_INPUTS, PLANES_OUTPUTS)


def write_mapping_graph(path: str | os.PathLike[str], generator: Generator) -> None:
    """Write the graph of `MappingGraph`: z, c -> ws.

    Raises:
        UserError: as `write_planes_graph`.
    """
    _write(path, MappingGraph(generator), _latent_and_camera(generator), ("z", "c"), ("ws",))


def write_synthesis_graph(path: str | os.PathLike[str], generator: Generator) -> None:
    """Write the graph of `SynthesisGraph`: ws -> planes.

    Raises:
        UserError: as `write_planes_graph`.
    """
    _write(path, SynthesisGraph(generator), (_zero_ws(generator),), ("ws",), ("planes",))


def write_image_graph(
    path: str | os.PathLike[str], generator: Generator, resolution: int | None = None
) -> None:
    """Write the graph of `ImageGraph`; `resolution` are pixels a side of the rendering, by default
    the generator's own.

    Raises:
        UserError: as `write_planes_graph`.
    """
    options = generator.config.generator
    side = options.plane_resolution
    planes = torch.zeros(EXAMPLES, 3, options.plane_channels, side, side)
    inputs = (planes, _zero_ws(generator), _cameras())
    _write(path, ImageGraph(generator, resolution), inputs, IMAGE_INPUTS, IMAGE_OUTPUTS)


def _latent_and_camera(generator: Generator) -> tuple[Tensor, Tensor]:
    return torch.zeros(EXAMPLES, generator.z_dim), _cameras()


def _zero_ws(generator: Generator) -> Tensor:
    return torch.zeros(EXAMPLES, generator.num_ws, generator.w_dim)


def _cameras() -> Tensor:
    return torch.eye(5).reshape(1, LABEL_SIZE).repeat(EXAMPLES, 1)


def _write(
    path: str | os.PathLike[str],
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
) -> None:
    operators = _missing_operators()
    samples = {0: torch.export.Dim.DYNAMIC}
    with library.path("reference"), torch.no_grad(), _quiet():
        try:
            program: Any = torch.onnx.export(
                graph.eval(),
                inputs,
                dynamo=True,
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                dynamic_shapes=[samples if value.dim() else {} for value in inputs],
                custom_translation_table=operators,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(
                f"{path}: the ONNX exporter does not take this network: {reason}"
            ) from error
        with atomic_write(path) as file:
            file.write(_name_outputs(program.model_proto, output_names).SerializeToString())


def _name_outputs(model: Any, names: tuple[str, ...]) -> Any:
    """The graph with its outputs called `names`, which the exporter forgets where two outputs share
    a computation.
    """
    for output, name in zip(model.graph.output, names, strict=True):
        renamed = {output.name: name}
        for node in model.graph.node:
            node.input[:] = [renamed.get(value, value) for value in node.input]
            node.output[:] = [renamed.get(value, value) for value in node.output]
        output.name = name
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _missing_operators() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of the renderer for which PyTorch's exporter has no translation, in terms of
    ONNX.
    """
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise UserError(
            "ONNX files are written with the packages onnx and onnxscript; run: pip install"
            " 'open-eg3d[onnx]'"
        ) from error

    op: Any = opset18

    def cumprod(x: Any, dim: int, dtype: int | None = None) -> Any:  # noqa: ARG001
        """Of positive numbers, which transmittances are: ONNX has running sums only."""
        return op.Exp(op.CumSum(op.Log(x), op.Constant(value_ints=[dim])))

    def searchsorted(
        sorted_sequence: Any,
        self: Any,
        out_int32: bool = False,  # noqa: ARG001
        right: bool = False,
        side: str | None = None,
        sorter: Any = None,
    ) -> Any:
        """The number of entries that do not exceed each value."""
        if not right or side is not None or sorter is not None:
            raise NotImplementedError("only searchsorted(right=True)")
        entries = op.Unsqueeze(sorted_sequence, op.Constant(value_ints=[-2]))
        reached = op.LessOrEqual(entries, op.Unsqueeze(self, op.Constant(value_ints=[-1])))
        return op.ReduceSum(op.Cast(reached, to=7), op.Constant(value_ints=[-1]), keepdims=0)

    def sort(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
        """Along the last dimension; TopK keeps equal values in order, as a stable sort does."""
        if dim != -1:
            raise NotImplementedError("only along the last dimension")
        return op.TopK(self, op.Shape(self, start=-1), axis=-1, largest=int(descending), sorted=1)

    aten = torch.ops.aten
    return {
        aten.cumprod.default: cumprod,
        aten.searchsorted.Tensor: searchsorted,
        aten.sort.stable: sort,
    }
