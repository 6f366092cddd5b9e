"""Files of feature networks with random weights, in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn


def inception_weights() -> dict[str, Tensor]:
    """State of torch-fidelity's Inception network, as its constructor makes it."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with (
        mock.patch.object(library, "load_state_dict_from_url", return_value={}),
        mock.patch.object(library.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        return library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()


def lpips_reference() -> Any:
    """torch-fidelity's LPIPS with random weights."""
    import torchvision
    from torch_fidelity import sample_similarity_lpips as library

    torch.manual_seed(0)
    with (
        mock.patch.object(library, "load_state_dict_from_url", return_value={}),
        mock.patch.object(library.SampleSimilarityLPIPS, "load_state_dict"),
        mock.patch.object(
            library,
            "torchvision_load_pretrained_vgg16",
            return_value=torchvision.models.VGG(_vgg_features()),
        ),
    ):
        network = library.SampleSimilarityLPIPS("lpips")
    for name, parameter in network.named_parameters():
        if name.startswith("lin"):
            nn.init.uniform_(parameter)
    return network


def _vgg_features() -> nn.Sequential:
    from torchvision.models.vgg import cfgs, make_layers

    return make_layers(cfgs["D"])


def write_onnx(
    path: Path, matrix: np.ndarray, size: int = 4, batch: int | str = "N", channels: int = 3
) -> Path:
    """A linear network: pictures (N, channels, size, size) times `matrix` (channels * size^2,
    D).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Flatten", ["picture"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["vector"]),
    ]
    inputs = [
        helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, channels, size, size])
    ]
    outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [batch, matrix.shape[1]])]
    graph = helper.make_graph(
        nodes,
        "linear",
        inputs,
        outputs,
        [numpy_helper.from_array(matrix.astype(np.float32), "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path
