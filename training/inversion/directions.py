"""Directions along which identities are edited: (num_ws, w_dim), added to ws for one step."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.numbers import finite
from training.checkpoints.identities import check_name
from training.inversion.latents import LatentStatistics
from training.networks.generator import Generator
from training.networks.stylegan2 import SynthesisLayer, ToRGB

SEFA_COUNT = 10
RIDGE = 0.01  # of a linear fit, in units of the latents' variance
FEWEST_PER_TRAIT = 10  # scored samples


def sefa_directions(generator: Generator, count: int = SEFA_COUNT) -> dict[str, Tensor]:
    """Leading eigenvectors of A^T A, A being all the style layers' weights below one another (Shen
    and Zhou 2021, "Closed-Form Factorization of Latent Semantics in GANs", section 3): sefa1,
    sefa2, ... A step is a standard deviation of mapped latents along it.
    """
    layers = [
        module.affine.weight * module.affine.weight_gain
        for module in generator.backbone.synthesis.modules()
        if isinstance(module, (SynthesisLayer, ToRGB))
    ]
    weights = torch.cat(layers).detach().cpu().double()  # MPS has no float64
    vectors = torch.linalg.eigh(weights.T @ weights).eigenvectors.flip(1)[:, :count].T
    # an eigenvector has no sign of its own: its largest part is positive
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()
    covariance = torch.linalg.inv(LatentStatistics.of(generator).precision.cpu().double())
    lengths = ((vectors @ covariance) * vectors).sum(1).sqrt()
    steps = (vectors * lengths[:, None]).float()
    return {f"sefa{index + 1}": _on_all_layers(generator, one) for index, one in enumerate(steps)}


def read_scores(data: bytes, where: str) -> tuple[list[int], dict[str, list[float]]]:
    """Seeds, and their scores by trait, of a table seed,TRAIT,... in a file's bytes.

    Raises:
        UserError: that names `where` if this is no such table of numbers, or for names that --edit
            cannot take.
    """
    text = data.decode("utf-8-sig", "replace")  # Excel writes a mark in front
    lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row]
    if len(lines) < 2 or lines[0] == ["seed"]:
        raise UserError(f"{where} holds no scores; its first line is seed,TRAIT,...")
    header, *rows = lines
    for name in header:
        check_name(name, f"{where}: column")
    try:
        if len(set(header)) < len(header):
            raise ValueError("a name stands twice")
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        seeds = [int(cell) for cell in columns.pop("seed")]
        return seeds, {name: [finite(cell) for cell in cells] for name, cells in columns.items()}
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{where} is no table of scores; its first line is seed,TRAIT,... with different names,"
            " and each other one has a seed and numbers"
        ) from error


def supervised_directions(
    generator: Generator, w: Tensor, scores: Mapping[str, Sequence[float]]
) -> dict[str, Tensor]:
    """Directions of T traits from the scores of N samples w (N, w_dim): a linear fit each, then
    orthogonalised. A step changes its own trait's fit by a standard deviation and the others' by
    nothing; among such steps it is the shortest in Mahalanobis distance.

    Raises:
        UserError: for too few samples, and scores that do not vary.
    """
    if len(w) < FEWEST_PER_TRAIT * len(scores):
        raise UserError(
            f"{len(w)} scored samples are too few for {len(scores)} traits; score at least"
            f" {FEWEST_PER_TRAIT * len(scores)}"
        )
    values = torch.tensor([list(column) for column in scores.values()], dtype=torch.float64).T
    spread = values.std(0)
    for name, one in zip(scores, spread.tolist(), strict=True):
        if not one > 0:
            raise UserError(f"all scores of {name} are the same; leave that column out")
    w = w.cpu().double()
    centred = w - w.mean(0)
    covariance = centred.T @ centred / len(w)
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    standard = (values - values.mean(0)) / spread
    slopes = torch.linalg.solve(covariance + ridge, centred.T @ standard / len(w))
    spans = covariance @ slopes
    steps = spans @ torch.linalg.pinv(slopes.T @ spans)
    return {
        name: _on_all_layers(generator, step.float())
        for name, step in zip(scores, steps.T, strict=True)
    }


def _on_all_layers(generator: Generator, step: Tensor) -> Tensor:
    return step.cpu().expand(generator.num_ws, -1).contiguous()


def edit_latents(generator: Generator, ws: Tensor, edits: Mapping[str, float]) -> Tensor:
    """Latents ws (N, num_ws, w_dim) moved by so many steps along named directions: those of the
    generator's file, or sefa1, sefa2, ...

    Raises:
        UserError: for a direction that there is not.
    """
    known = dict(generator.directions)
    if any(name not in known for name in edits):
        known = {**sefa_directions(generator), **known}
    for name, amount in edits.items():
        if name not in known:
            raise UserError(f"there is no direction {name!r}; there are {', '.join(sorted(known))}")
        ws = ws + amount * known[name].to(ws)
    return ws
