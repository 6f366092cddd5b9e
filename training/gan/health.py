"""Whether latents still make a difference: what a run tells of collapse while it goes on.

All numbers are drawn from generators of their own, so that looking changes nothing of a run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.gan.loss import Schedule, real_pictures
from training.networks.generator import Generator
from training.networks.layers import resize_image

LATENTS = 256  # whose w are compared
PICTURES = 32  # fakes, and reals, that are compared
MOST_WATCHED = 64  # reals that D is asked about
SIZE = 16  # pixels at which pictures are compared
FEATURES = 32  # of each layer of the random network
COLLAPSED = 0.1  # of the reals' spread: below this a line warns


class CollapseWatch:
    """Compares fakes of many latents at one camera with the reals nearest to that camera."""

    def __init__(self, c: Tensor, reals: Tensor) -> None:
        """Watch at the camera c (25,); `reals` (N, 3, H, W) in [-1, 1] were seen from near it."""
        self.c = c
        self.reals = spread_of_pictures(reals)

    def look(self, G: Generator) -> dict[str, float]:
        """Statistics by name: spread of w, and of pictures relative to that of the reals."""
        fakes = spread_of_pictures(fakes_at_one_camera(G, self.c))
        relative = {name: value / max(self.reals[name], 1e-12) for name, value in fakes.items()}
        return spread_of_ws(G, self.c) | relative


class JudgedReals(NamedTuple):
    """Real pictures for D."""

    images: Tensor  # (N, 3, H, W) in [-1, 1]; with alpha (N, 4, H, W)
    c: Tensor  # (N, 25)


class RealsWatch:
    """Compares what D makes of reals that it is trained on and of reals that it has never seen: the
    farther apart, the more it knows pictures by heart.
    """

    def __init__(
        self,
        trained_on: JudgedReals,
        held_out: JudgedReals,
        group: int,
        device: torch.device,
        judges_alpha: bool = False,
    ) -> None:
        """`group`: samples of a group of the minibatch statistics, which are judged together on
        `device`; `judges_alpha`: D sees alpha.
        """
        self.group, self.device, self.judges_alpha = group, device, judges_alpha
        self.reals = {
            ("Reals/logits_trained_on", "Reals/accuracy_trained_on"): trained_on,
            ("Reals/logits_held_out", "Reals/accuracy_held_out"): held_out,
        }

    @torch.no_grad()
    def look(self, D: nn.Module, schedule: Schedule) -> dict[str, float]:
        """Statistics by name: D's mean logit of both kinds, and the share that it takes for
        real.
        """
        found = {}
        for (mean, accuracy), reals in self.reals.items():
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # D may add noise to the cameras
                parts = [
                    self._judge(D, JudgedReals(images, c), schedule)
                    for images, c in zip(*(v.split(self.group) for v in reals), strict=True)
                ]
            logits = torch.cat(parts)
            found[mean] = float(logits.mean())
            found[accuracy] = float((logits > 0).double().mean())
        return found

    def _judge(self, D: nn.Module, reals: JudgedReals, schedule: Schedule) -> Tensor:
        images, background = reals.images.to(self.device), None
        if images.shape[1] == 4:
            background = torch.full((len(images), 3), -1.0, device=self.device)
        shown = real_pictures(images, schedule, background, self.judges_alpha)
        logits: Tensor = D(*shown, reals.c.to(self.device))
        return logits


def collapse_warning(values: dict[str, float]) -> str | None:
    """A line to tell where fakes hardly differ any more."""
    spread = min(values["Spread/pixels"], values["Spread/features"])
    if spread >= COLLAPSED:
        return None
    return (
        f"warning: seeds hardly differ: fakes at one camera have {100 * spread:.0f} % of the reals'"
        " spread (Spread/pixels, Spread/features); a larger --gamma or more data may help"
    )


@torch.no_grad()
def spread_of_ws(G: Generator, c: Tensor) -> dict[str, float]:
    """How much w (before truncation) varies with z at one camera c (25,): the share of E|w|^2 that
    does, and the mean cosine between two seeds' w.
    """
    w = G.mapping(_latents(G, LATENTS, c.device), c.expand(LATENTS, -1))[:, 0].double()
    share = w.var(dim=0).sum() / w.square().sum(dim=1).mean()
    units = F.normalize(w, dim=1)
    cosine = (units.sum(dim=0).square().sum() - LATENTS) / (LATENTS * (LATENTS - 1))
    return {"Spread/w": float(share), "Spread/w_cosine": float(cosine)}


@torch.no_grad()
def spread_of_pictures(pictures: Tensor) -> dict[str, float]:
    """Mean distance between two of `pictures` (N, 3, H, W) in [-1, 1]: root mean square of pixels
    at 16 x 16, and of the features of a random network.
    """
    small = resize_image(pictures.float(), SIZE)
    return {
        "Spread/pixels": _mean_distance(small.flatten(1)),
        "Spread/features": _mean_distance(random_features(small)),
    }


@torch.no_grad()
def fakes_at_one_camera(G: Generator, c: Tensor) -> Tensor:
    """Pictures (N, 3, res, res) of N seeds from the camera c (25,), conditioned on it."""
    z = _latents(G, PICTURES, c.device)
    return torch.cat([G(part, c.expand(len(part), -1)).image for part in z.split(8)])


def reals_near_one_camera(labels: Tensor, c: Tensor) -> Tensor:
    """Indices (N,) of the reals, of labels (M, 25), whose cameras are the nearest to c (25,)."""
    distances = (labels - c).square().sum(dim=1)
    return distances.argsort(stable=True)[:PICTURES]


def random_features(pictures: Tensor) -> Tensor:
    """Features (N, K) of pictures (N, 3, H, W) from three random convolutions, always the same."""
    generator = torch.Generator().manual_seed(0)
    x, found = pictures, []
    for _ in range(3):
        shape = (FEATURES, x.shape[1], 3, 3)
        weight = torch.randn(shape, generator=generator) / (9 * x.shape[1]) ** 0.5
        x = F.leaky_relu(F.conv2d(x, weight.to(x), stride=2, padding=1), 0.2)
        found.append(x.flatten(1))
    return torch.cat(found, dim=1)


def _latents(G: Generator, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, G.z_dim, generator=generator).to(device)


def _mean_distance(rows: Tensor) -> float:
    """Root mean square difference between two of N rows (N, K)."""
    return float((2 * rows.double().var(dim=0).mean()).sqrt())
