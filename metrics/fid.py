"""Fréchet inception distance (Heusel et al., GANs Trained by a Two Time-Scale Update Rule...,
NeurIPS 2017, equation 6).
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(
    mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of means (D,) and covariances (D, D), which may
    be singular; float64.

    With C = F F^T, the trace of the root is the sum of the singular values of F1^T F2. This stays
    accurate where covariances are singular, as they are for fewer features than dimensions; the
    eigenvalues of C1 C2 do not.
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        x.detach().cpu().to(torch.float64) for x in (mean_1, covariance_1, mean_2, covariance_2)
    )
    factors = (_factor(covariance) for covariance in (covariance_1, covariance_2))
    first, second = factors
    root_trace = (
        torch.linalg.svdvals(first.T @ second).sum()
        if first.shape[1] and second.shape[1]
        else torch.zeros(())
    )
    distance = (
        (mean_1 - mean_2).square().sum()
        + covariance_1.trace()
        + covariance_2.trace()
        - 2 * root_trace
    )
    return max(float(distance), 0.0)  # rounding may leave -1e-16 for equal sets


def _factor(covariance: Tensor) -> Tensor:
    """F (D, rank) with F F^T = covariance."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor  # what is below is rounding, and its root would be far larger than it
    return vectors[:, kept] * values[kept].sqrt()
