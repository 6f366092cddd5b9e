"""Identity: is a face one person from all sides? (EG3D, section 5.2, there with ArcFace)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from metrics.onnx_models import OnnxModel
from metrics.processes import WorkerGroup
from metrics.sampling import GeneratorSampler


def identity_similarity(
    sampler: GeneratorSampler, embedder: OnnxModel, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Mean and deviation over `count` fakes of the cosine of the embeddings of two views."""
    cosines = torch.zeros(count, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Identity"):
        cameras = sampler.cameras(start, size), sampler.second_cameras(start, size)
        ws = sampler.ws(sampler.latents(start, size), cameras[0])
        with torch.no_grad():
            planes = sampler.model.planes(ws)
        first, second = (embedder(sampler.render(ws, c, start, planes).image) for c in cameras)
        cosines[start : start + size] = F.cosine_similarity(first, second)
    cosines = team.sum(cosines)
    return {"identity": float(cosines.mean()), "std": float(cosines.std(correction=0))}
