"""Slow, obvious float64 statements of what networks and renderer compute, for tests to compare
with: loops, NumPy only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FIR = np.outer([1.0, 3.0, 3.0, 1.0], [1.0, 3.0, 3.0, 1.0]) / 64


def pad(x: Array, x0: int, x1: int, y0: int, y1: int) -> Array:
    """Zeros around (N, C, H, W); negative numbers crop."""
    grown = np.pad(x, ((0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    height, width = grown.shape[2:]
    return grown[:, :, max(-y0, 0) : height - max(-y1, 0), max(-x0, 0) : width - max(-x1, 0)]


def insert_zeros(x: Array, up_x: int, up_y: int) -> Array:
    """Each pixel followed by up - 1 zeros."""
    batch, channels, height, width = x.shape
    spread = np.zeros((batch, channels, height * up_y, width * up_x))
    spread[:, :, ::up_y, ::up_x] = x
    return spread


def correlate(x: Array, weight: Array, stride: int = 1, padding: int = 0) -> Array:
    """(N, I, H, W) with (O, I, h, w): sums of products, the weight not turned."""
    x = pad(x, padding, padding, padding, padding)
    h, w = weight.shape[2:]
    rows, columns = (x.shape[2] - h) // stride + 1, (x.shape[3] - w) // stride + 1
    result = np.zeros((len(x), len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * stride : i * stride + h, j * stride : j * stride + w]
            result[:, :, i, j] = np.einsum("nihw,oihw->no", patch, weight)
    return result


def transposed(x: Array, weight: Array, stride: int) -> Array:
    """Transposed convolution without padding: every pixel of (N, I, H, W) stamps the weight (O, I,
    h, w) into the result.
    """
    h, w = weight.shape[2:]
    result = np.zeros(
        (len(x), len(weight), (x.shape[2] - 1) * stride + h, (x.shape[3] - 1) * stride + w)
    )
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            result[:, :, i * stride : i * stride + h, j * stride : j * stride + w] += np.einsum(
                "ni,oihw->nohw", x[:, :, i, j], weight
            )
    return result


def filter_image(x: Array, kernel: Array) -> Array:
    """Convolve (kernel turned by 180 degrees) every channel with (h, w), only where the kernel
    fits.
    """
    channels = x.shape[1]
    weight = np.zeros((channels, channels, *kernel.shape))
    weight[range(channels), range(channels)] = kernel[::-1, ::-1]
    return correlate(x, weight)


def upsample(x: Array) -> Array:
    """Twice the size: a pixel after each one, the FIR with gain 4, centred, zeros outside."""
    return filter_image(pad(insert_zeros(x, 2, 2), 2, 1, 2, 1), 4 * FIR)


def lrelu(x: Array, gain: float = math.sqrt(2)) -> Array:
    """Leaky ReLU of slope 0.2, times a gain."""
    return np.where(x > 0, x, 0.2 * x) * gain


def linear(x: Array, weight: Array, bias: Array, lr_multiplier: float = 1.0) -> Array:
    """Equalised fully connected layer from its stored weight (O, I) and bias (O,)."""
    return x @ (weight * lr_multiplier / math.sqrt(weight.shape[1])).T + bias * lr_multiplier


def unit_moment(x: Array) -> Array:
    """Rows of mean square one."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-8)


def modulated(
    x: Array, weight: Array, styles: Array, demodulate: bool = True, up: int = 1
) -> Array:
    """Modulated convolution with a weight of its own for each sample."""
    results = []
    for sample, style in zip(x, styles, strict=True):
        scaled = weight * style[None, :, None, None]
        if demodulate:
            scaled = scaled / np.sqrt((scaled**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        if up == 2:
            doubled = transposed(sample[None], scaled, stride=2)
            results.append(filter_image(pad(doubled, 1, 1, 1, 1), 4 * FIR))
        else:
            results.append(correlate(sample[None], scaled, padding=weight.shape[-1] // 2))
    return np.concatenate(results)


def resize_matrix(size_in: int, size_out: int, antialias: bool) -> Array:
    """(size_out, size_in) weights of a bilinear resize between pixel centres; triangle widened by
    the factor it shrinks by.
    """
    scale = size_in / size_out
    reach = max(scale, 1.0) if antialias else 1.0
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        center = (i + 0.5) * scale - 0.5
        if antialias:
            matrix[i] = np.maximum(0, 1 - np.abs(np.arange(size_in) - center) / reach)
        else:
            for j in (math.floor(center), math.floor(center) + 1):
                matrix[i, min(max(j, 0), size_in - 1)] += 1 - abs(center - j)
    return matrix / matrix.sum(axis=1, keepdims=True)


def resize(x: Array, size: int, antialias: bool = True) -> Array:
    """(N, C, H, W) to (N, C, size, size)."""
    rows, columns = (resize_matrix(n, size, antialias) for n in x.shape[2:])
    return np.einsum("ih,nchw,jw->ncij", rows, x, columns)


def bilinear(plane: Array, x: float, y: float) -> Array:
    """Value (C,) of a plane (C, H, W) that spans [-1, 1]^2 from edge to edge, x along the width;
    zero outside.
    """
    height, width = plane.shape[1:]
    column, row = (x + 1) / 2 * width - 0.5, (y + 1) / 2 * height - 0.5
    total = np.zeros(len(plane))
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += plane[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def interval_weights(depths: Array, densities: Array) -> Array:
    """Compositing weights of the intervals between the samples (S,) of one ray."""
    weights, transmittance = [], 1.0
    for i in range(len(depths) - 1):
        sigma = softplus((densities[i] + densities[i + 1]) / 2 - 1)
        alpha = 1 - math.exp(-sigma * (depths[i + 1] - depths[i]))
        weights.append(alpha * transmittance)
        transmittance *= 1 - alpha + 1e-10
    return np.array(weights)


def smooth_weights(weights: Array) -> Array:
    """Maximum over neighbouring pairs with zero ends, mean of neighbouring pairs, plus 0.01."""
    ends = [0.0, *weights, 0.0]
    larger = [max(ends[i], ends[i + 1]) for i in range(len(ends) - 1)]
    return np.array([(larger[i] + larger[i + 1]) / 2 + 0.01 for i in range(len(weights))])


def invert_cdf(edges: Array, weights: Array, u: float) -> float:
    """Where the cumulative distribution of piecewise-constant weights reaches u."""
    probabilities = (weights + 1e-5) / (weights + 1e-5).sum()
    cdf = [0.0]
    for p in probabilities:
        cdf.append(cdf[-1] + p)
    above = next((i for i, value in enumerate(cdf) if value > u), len(cdf) - 1)
    width = cdf[above] - cdf[above - 1]
    return edges[above - 1] + (u - cdf[above - 1]) / (1.0 if width < 1e-5 else width) * (
        edges[above] - edges[above - 1]
    )


def importance_depths(depths: Array, weights: Array, count: int, placement: str) -> Array:
    """Deterministic fine depths of one ray."""
    smooth, edges = smooth_weights(weights), depths
    if placement == "released":
        middles = [(depths[k] + depths[k + 1]) / 2 for k in range(len(depths) - 1)]
        smooth = smooth[1:-1]
        edges = np.array(middles[: len(depths) - 2])
    return np.array([invert_cdf(edges, smooth, (i + 0.5) / count) for i in range(count)])
