"""Networks of others in ONNX files, run on the CPU: a face embedder, a pose estimator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import local_file
from metrics.weights import file_hash


class OnnxModel:
    """A network of pictures (N, 3, h, w), RGB in [-1, 1], whose first output is a vector each."""

    def __init__(self, path: str | Path, option: str) -> None:
        """Open a file; `option` is what the user named it with.

        Raises:
            UserError: if onnxruntime is missing, the file is not an ONNX model, or its input is no
                picture.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{option} needs onnxruntime ({error}); install it: pip install 'open-eg3d[onnx]'"
            ) from error
        self.path, self.option = local_file(path), option
        self.hash = file_hash(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised, and said once
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        # onnxruntime has a class of its own for each kind of damage, without a common base
        except Exception as error:
            raise UserError(
                f"{option} {path} is not an ONNX model that onnxruntime can run"
            ) from error
        self.input = self.session.get_inputs()[0]
        self.height, self.width, self.batch = self._check_input()

    def _check_input(self) -> tuple[int, int, int | None]:
        shape: list[Any] = self.input.shape
        sizes = shape[2:] if len(shape) == 4 else []
        if (
            self.input.type != "tensor(float)"
            or len(sizes) != 2
            or shape[1] != 3
            or not all(isinstance(size, int) for size in sizes)
        ):
            raise UserError(
                f"{self.option} {self.path} takes {self.input.type} {shape}; it must take float"
                " pictures (N, 3, height, width)"
            )
        return sizes[0], sizes[1], shape[0] if isinstance(shape[0], int) else None

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors (N, D), float64, of pictures (N, 3, H, W) in [-1, 1], which are resized to the
        model's size (antialiased bilinear).

        Raises:
            UserError: if the model fails.
        """
        pixels = images.detach().float().cpu().clamp(-1, 1)
        if pixels.shape[-2:] != (self.height, self.width):
            size = self.height, self.width
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        parts = pixels.split(self.batch or len(pixels))
        vectors = torch.cat([self._run(part.numpy()) for part in parts])
        return vectors.reshape(len(images), -1).double()

    def _run(self, pixels: np.ndarray) -> Tensor:
        missing = (self.batch or len(pixels)) - len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], missing, 0)]) if missing else pixels
        try:
            output = self.session.run(None, {self.input.name: padded})[0]
        except Exception as error:
            raise UserError(
                f"{self.option} {self.path} fails on a picture: {str(error).splitlines()[0][:200]}"
            ) from error
        return torch.from_numpy(np.asarray(output))[: len(pixels)]
