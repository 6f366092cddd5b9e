"""How the samples of a batch are dealt to processes and micro-batches, such that neither changes
what is computed.

Sample p of a batch of B goes to process p mod N. A group of the minibatch statistics is the samples
n, n + B/G, n + 2 B/G, ... of the whole batch; every micro-batch holds whole groups, in an order in
which the discriminator finds the same ones.
"""

from __future__ import annotations

import enum

import numpy as np
import torch
from torch import Tensor

from torch_utils.devices import upload
from torch_utils.sample_random import SampleStreams
from training.config.settings import Config


class RngStream(enum.IntEnum):
    """What random numbers are drawn for: each has streams of its own."""

    CAMERAS = 0
    LATENTS = 1
    G = 2
    G_REG = 3
    D = 4
    D_REG = 5
    POSES = 6


class Phase(enum.Enum):
    """The updates of a step. Values are names in statistics and in the state of a run."""

    G = "G"
    G_REG = "Greg"
    D = "D"
    D_REG = "Dreg"

    @property
    def stream(self) -> RngStream:
        """What its samples draw from."""
        return RngStream[self.name]


FAKE_PHASES = (Phase.G, Phase.G_REG, Phase.D)  # each makes fakes of its own


class RankShard:
    """The samples of each batch that one process handles.

    Attributes:
        positions: (S,) places in the whole batch.
        micro_batches: indices (M,) into the S samples, for each micro-batch.
    """

    def __init__(self, config: Config, rank: int = 0, processes: int = 1) -> None:
        """Deal as `config.training` says; `check_batch` has found that it can be done."""
        batch = config.training.batch
        self.positions = torch.arange(rank, batch, processes)
        size = len(self.positions)
        group = min(config.model.discriminator.mbstd_group_size, config.training.batch_gpu or size)
        members = torch.arange(size).view(group, -1)  # a column is a group
        groups_at_once = (config.training.batch_gpu or size) // group
        self.micro_batches = [part.flatten() for part in members.split(groups_at_once, dim=1)]
        self._sent = dict[torch.device, tuple[Tensor, list[Tensor]]]()

    def __len__(self) -> int:
        return len(self.positions)

    def on(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """`positions` and `micro_batches` on `device`, where they index; they are sent once."""
        if device not in self._sent:
            parts = [upload(part, device) for part in self.micro_batches]
            self._sent[device] = upload(self.positions, device), parts
        return self._sent[device]

    def streams(
        self, seed: int, images: int, stream: RngStream, part: Tensor | None = None
    ) -> SampleStreams:
        """Streams of the samples in `part` (None = all), in the step after `images` images."""
        positions = self.positions if part is None else self.positions[part]
        return SampleStreams(
            [draw_seed(seed, images + position, stream) for position in positions.tolist()]
        )


def draw_seed(seed: int, image: int, stream: RngStream) -> int:
    """Seed of what is drawn for one purpose for the sample number `image` of a run."""
    low, high = np.random.SeedSequence([seed % (1 << 64), image, int(stream)]).generate_state(2)
    return int(low) + (int(high) << 32)


def draw_cameras(
    labels: Tensor, phases: int, batch: int, seed: int, images: int
) -> tuple[Tensor, Tensor]:
    """Cameras of all fakes of a step, and those that swapping puts in their place: (phases, batch,
    25) both; every process draws the same.

    What is swapped in is the camera of the sample before. A batch of one has none: then it is one
    more camera of the data set.
    """
    generator = torch.Generator().manual_seed(draw_seed(seed, images, RngStream.CAMERAS))
    indices, others = (
        upload(torch.randint(len(labels), (phases, batch), generator=generator), labels.device)
        for _ in range(2)
    )
    c = labels[indices]
    return c, c.roll(1, dims=1) if batch > 1 else labels[others]


def camera_std(c: Tensor) -> Tensor:
    """Standard deviation (1, 25) of the cameras (B, 25) of a whole batch."""
    return c.std(dim=0, keepdim=True, correction=min(1, len(c) - 1))
