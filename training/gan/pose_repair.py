"""Given cameras that are a little wrong, put right while a model learns from them (`--poses
repair`).

A small network learns to tell the cameras of fakes, which are known. Of a real picture it gives an
opinion that does not depend on the picture's own label. Where label and opinion differ, the truth
lies between them: at the label where labels are good, at the opinion where that is good, as in a
Kalman filter. How good either is, is measured all the time: opinions on new fakes, whose error
shows, and labels by how much more the two differ on reals than that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.devices import upload
from torch_utils.distributed.collectives import copy_from_first, gather_batch
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.stats import Statistics
from training.cameras import (
    CameraSummary,
    constant,
    fixed_choice,
    offset_labels,
    offsets_between,
)
from training.config.settings import Config, DataConfig
from training.gan.batches import RngStream, draw_seed
from training.networks.pose_network import PoseNetwork

REMEMBERED = 8192  # cameras of reals, from which those of fakes are drawn
POOL = 512  # latest fakes, from which every step draws
DRAWN = 64
LEARNING_RATE = 5e-4
HALF_LIFE = 500.0  # images over which errors are averaged
JITTER, NOISE = 0.15, 0.05  # of colours and pixels: reals look a little different from fakes


class PoseRepair:
    """The network and what is known about errors; the same in all processes.

    Attributes:
        cameras: (K, 25) of reals, as they are put right. moments: of opinions' errors on fakes, of
            how much they differ from reals' labels, and the mean of that, (3, 6) each by turn and
            shift as of `offset_labels`; the first two are mean squares.
    """

    def __init__(self, config: Config, camera_labels: Tensor, device: torch.device) -> None:
        self.seed, self.batch = config.training.seed, config.training.batch
        self.summary = CameraSummary.from_labels(camera_labels.cpu())
        self.prior = prior_widths(config.data, self.summary).to(device)
        self.network = PoseNetwork(config.model.resolution, self.summary).to(device)
        copy_from_first(self.network)
        # All processes learn from the same, but not every sum on a GPU rounds alike, and without it
        # their networks would drift apart.
        self.average = GradientAverage(list(self.network.parameters()))
        self.optimizer = torch.optim.Adam(self.network.parameters(), LEARNING_RATE, fused=True)
        chosen = fixed_choice(len(camera_labels), REMEMBERED)
        self.cameras = camera_labels[chosen].to(device)
        self.moments = torch.zeros(3, 6, device=device)  # nothing is corrected with these
        self.pool: dict[str, Tensor] = {}

    @torch.no_grad()
    def better(self, reals: Tensor, c: Tensor) -> Tensor:
        """Cameras (N, 25) of reals (N, 3, R, R) in the place of those given."""
        return self._moved(self._opinion(reals, c), c)

    @torch.no_grad()
    def put_right(self, reals: Tensor, c: Tensor, images: int) -> Tensor:
        """The same for this process's part of a batch, which counts in what is known about errors,
        after `images` images of the run.
        """
        differ = self._opinion(reals, c)
        better = self._moved(differ, c)
        everywhere, cameras = gather_batch(differ), gather_batch(better)
        self._average(2, everywhere.mean(0), images)
        self._average(1, (everywhere - self.moments[2]).square().mean(0), images)
        rows = (images + torch.arange(len(cameras))) % len(self.cameras)
        self.cameras[upload(rows, self.cameras.device)] = cameras
        return better

    def _moved(self, differ: Tensor, c: Tensor) -> Tensor:
        """Cameras (N, 25) moved as far towards the opinion as it is worth."""
        corrections = self.gain() * (differ - self.moments[2])
        return offset_labels(c, self.summary, *corrections.split(3, dim=1))

    def gain(self) -> Tensor:
        """Share (6,) of the way from the label to the opinion: the variance of labels' errors, of
        which the prior is an upper bound, to that of the difference; less, down to nothing, as long
        as opinions on fakes are hardly better than the prior. Reals then look so different from
        fakes that opinions on them are worth much less, and moved labels would spoil the fakes.
        """
        of_fakes, of_reals, _ = self.moments
        prior = self.prior.square()
        of_labels = (of_reals - of_fakes).clamp(min=0).minimum(prior)
        trust = (1 - of_fakes / prior).clamp(min=0)
        return trust * of_labels / of_reals.clamp(min=1e-12)

    def learn(self, fakes: Tensor, c: Tensor, images: int, statistics: Statistics) -> None:
        """One step of the network on this process's new fakes (B, 3, R, R) and those before."""
        with torch.no_grad():
            # a bad step of the generator must not spoil the network
            seen = gather_batch(self.network.shrunk(fakes.nan_to_num().clamp(-1, 1)))
            c = gather_batch(c)
            self._average(0, self._opinion(seen, c).square().mean(0), images)
        new = {"pictures": ((seen + 1) * 127.5).round().to(torch.uint8), "cameras": c}
        self.pool = {
            name: torch.cat([self.pool[name], value])[-POOL:] if self.pool else value
            for name, value in new.items()
        }
        generator = torch.Generator().manual_seed(draw_seed(self.seed, images, RngStream.POSES))
        chosen = torch.randint(len(self.pool["cameras"]), (DRAWN,), generator=generator)
        chosen = upload(chosen, c.device)
        shown = self._disguised(self.pool["pictures"][chosen], generator)
        wanted = self.pool["cameras"][chosen]
        error = self._errors(self.network(shown, wanted[:, 16:]), wanted)
        self.optimizer.zero_grad(set_to_none=True)
        self.average.begin()
        self.average.expect_last()
        error.mean().backward()
        self.average.finish(torch.zeros(0))
        self.optimizer.step()
        self._report(statistics)

    def _opinion(self, pictures: Tensor, c: Tensor) -> Tensor:
        """Turns and shifts (B, 6) from cameras to where the network thinks they are."""
        return offsets_between(c, self.network(pictures, c[:, 16:]), self.summary)

    def _errors(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Squared error (B,) in units of the prior. A rotation's is that of its matrix, half of
        whose square is the angle's where that is small, and which is smooth where it is large.
        """
        turn, shift = self.prior[0], self.prior[3:]
        difference = (found - wanted)[:, :16].unflatten(1, (4, 4))
        turned = difference[:, :3, :3].square().sum((1, 2)) / 2
        # Where the pivot is seen: the camera's own error, whatever its rotation.
        moved = self._pivot_seen(found) - self._pivot_seen(wanted)
        return turned / turn**2 + (moved / shift).square().sum(1)

    def _pivot_seen(self, c: Tensor) -> Tensor:
        """The pivot (B, 3) in cameras' axes, in radii."""
        pose = c[:, :16].unflatten(1, (4, 4))
        pivot = constant(self.summary.pivot, c)
        seen = pose[:, :3, :3].mT @ (pivot - pose[:, :3, 3])[..., None]
        return seen[..., 0] / self.summary.radius

    def _disguised(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (B, 3, S, S), uint8, in [-1, 1], with other colours, and half of them blurred:
        the camera shall be told by what they show.
        """
        count, device = len(pictures), pictures.device
        tint = 1 + JITTER * torch.randn(count, 3, 1, 1, generator=generator)
        light = JITTER * torch.randn(count, 1, 1, 1, generator=generator)
        noise = NOISE * torch.randn(pictures.shape, generator=generator)
        shown = pictures / 127.5 - 1
        half = count // 2
        shown[:half] = F.avg_pool2d(F.pad(shown[:half], (1, 1, 1, 1), mode="replicate"), 3, 1)
        return shown * upload(tint, device) + upload(light, device) + upload(noise, device)

    def _average(self, row: int, values: Tensor, images: int) -> None:
        """Count the values of a batch; the first ones are averaged plainly."""
        weight = max(1 - 0.5 ** (self.batch / HALF_LIFE), self.batch / (images + self.batch))
        self.moments[row].lerp_(values, weight)

    def _report(self, statistics: Statistics) -> None:
        """Errors of opinions and of labels, as far as they are known, in degrees."""
        turns = self.moments[:, :3]
        of_labels = (turns[1] - turns[0]).clamp(min=0)
        for name, values in (("opinion", turns[0]), ("labels", of_labels)):
            statistics.report(f"Poses/{name}_degrees", values.mean().sqrt() * (180 / math.pi))
        statistics.report("Poses/gain", self.gain()[:3].mean())

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as tensors and plain values."""
        return {
            "summary": self.summary.to_dict(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cameras": self.cameras,
            "moments": self.moments,
            "pool": self.pool,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        device = self.cameras.device
        self.summary = self.network.cameras = CameraSummary.from_dict(state["summary"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.cameras = state["cameras"].to(device)
        self.moments = state["moments"].to(device)
        self.pool = {name: value.to(device) for name, value in state["pool"].items()}


def prior_widths(data: DataConfig, cameras: CameraSummary) -> Tensor:
    """Standard deviations (6,) of the errors of given cameras, as turn (radians) and shift (radii):
    what the settings say in degrees, and in shares of distance and picture.
    """
    turn = math.radians(data.pose_error_degrees)
    across = data.pose_error_shift / cameras.intrinsics[0]
    return torch.tensor([turn, turn, turn, across, across, data.pose_error_distance])
