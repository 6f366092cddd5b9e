"""Inception score (Salimans et al., Improved Techniques for Training GANs, 2016, section 4)."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from metrics.names import IS_SPLITS

SEED = 2020  # torch-fidelity's, so that its numbers are met


def inception_score(
    logits: Tensor, splits: int = IS_SPLITS, seed: int = SEED
) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(mean KL(p(y|x) || p(y))) for class logits
    (N, K), shuffled by `seed`.
    """
    count = len(logits)
    logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(count))].to(
        torch.float64
    )
    bounds = [index * count // splits for index in range(splits + 1)]
    scores = torch.stack(
        [_score(logits[low:high].log_softmax(1)) for low, high in itertools.pairwise(bounds)]
    )
    return float(scores.mean()), float(scores.std(correction=0))


def _score(log_p: Tensor) -> Tensor:
    log_marginal = log_p.logsumexp(0) - np.log(len(log_p))
    return (log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp()
