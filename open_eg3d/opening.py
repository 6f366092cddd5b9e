"""Generators as command lines want them: on a device, in a precision."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from open_eg3d import load_generator
from torch_utils.devices import has_fast_bf16
from training.networks.generator import Generator, GeneratorOutput


def open_generator(
    path_or_url: str | os.PathLike[str], device: torch.device, precision: str = "fp32"
) -> Generator:
    """Generator of a file or address on a device, whose convolutions compute in fp32, in bf16, in
    fp16 as far as training does, or in what `sampling_precision` says (auto).

    Raises:
        UserError: if the file cannot be read or holds no generator.
    """
    generator = load_generator(path_or_url, reuse_memory=True).to(device)
    # few sizes, many pictures; but a choice by time may be another in the next process
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    if precision == "auto":
        precision = sampling_precision(generator, device)
    if precision == "bf16":
        generator.set_conv_dtype(backbone=torch.bfloat16, superresolution=torch.bfloat16)
    elif precision == "fp16":
        generator.set_conv_dtype(backbone=torch.float32, superresolution=torch.float16)
    return generator


def in_fp32(generator: Generator) -> Generator:
    """The generator with the same parameters, whose convolutions compute in fp32; the one that is
    given stays as it is.
    """
    shared = {id(one): one for one in (*generator.parameters(), *generator.buffers())}
    exact = copy.deepcopy(generator, shared)
    exact.set_conv_dtype(backbone=torch.float32, superresolution=torch.float32)
    return exact


def compile_rendering(generator: Generator) -> None:
    """Let torch.compile make `generator.render`, for many pictures of one size; on CUDA it becomes
    a graph that is launched at once. Without gradients.
    """
    compiled = torch.compile(generator.render, mode="reduce-overhead", fullgraph=True)

    def render(*arguments: Any, **options: Any) -> GeneratorOutput:
        torch.compiler.cudagraph_mark_step_begin()
        # a graph writes its next results where it wrote the last ones
        return GeneratorOutput(*(value.clone() for value in compiled(*arguments, **options)))

    setattr(generator, "render", render)  # noqa: B010 - a method, which mypy would not see assigned


def sampling_precision(generator: Generator, device: torch.device) -> str:
    """Half precision for pictures on CUDA: bf16 where the GPU has it, else fp16 if the model was
    trained with activations that are clamped to its range; fp32 elsewhere.
    """
    if device.type != "cuda":
        return "fp32"
    if has_fast_bf16("cuda"):
        return "bf16"
    return "fp16" if generator.config.superresolution.conv_clamp else "fp32"
