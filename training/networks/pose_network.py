"""From pictures to the cameras that took them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.cameras import CameraSummary, constant, pack_label, unpack_label
from training.networks.features import halving_layers

LARGEST = 64  # pixels per side of what the network sees, at most
CHANNELS = (32, 64, 96, 128)
HIDDEN = 128
DISTANCES, TURNS = 3, 6  # numbers that say where the pivot is seen, and two axes of the camera


class PoseNetwork(nn.Module):
    """Pictures (N, 3, R, R) in [-1, 1] to cameras; all directions alike, without a seam anywhere
    on the circle.

    A rotation is two axes, made orthonormal (Zhou et al. 2019, "On the continuity of rotation
    representations in neural networks"); a position is where the pivot is seen from there.
    """

    frontal: Tensor

    def __init__(self, resolution: int, cameras: CameraSummary) -> None:
        super().__init__()
        self.size, self.cameras = min(resolution, LARGEST), cameras
        channels = CHANNELS[: max(1, self.size.bit_length() - 2)]  # down to two pixels or more
        self.features = halving_layers(channels)
        count = channels[-1] * (self.size >> len(channels)) ** 2
        self.hidden = nn.Sequential(nn.Linear(count, HIDDEN), nn.SiLU())
        self.head = nn.Linear(HIDDEN, TURNS + DISTANCES)
        # begin with the mean camera: errors as large as those of random ones kill the features
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("frontal", cameras.frontal_label())

    def shrunk(self, images: Tensor) -> Tensor:
        """What the network sees of pictures (N, 3, R, R) of any size: (N, 3, size, size)."""
        if images.shape[-1] == self.size:
            return images
        size = (self.size, self.size)
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def forward(self, images: Tensor, intrinsics: Tensor) -> Tensor:
        """Cameras (N, 25) with the intrinsics (N, 9) that are known."""
        said = self.head(self.hidden(self.features(self.shrunk(images))))
        frontal, _ = unpack_label(self.frontal)
        right = F.normalize(frontal[:3, 0] + said[:, :3], dim=1)
        down = frontal[:3, 1] + said[:, 3:6]
        down = F.normalize(down - (down * right).sum(1, keepdim=True) * right, dim=1)
        forward = torch.linalg.cross(right, down)
        rotation = torch.stack([right, down, forward], 2)
        across, ahead = said[:, 6:8], said[:, 8:] + 1
        seen = torch.cat([across, ahead], 1) * self.cameras.radius  # the pivot in camera axes
        position = constant(self.cameras.pivot, said)[:, None] - rotation @ seen[..., None]
        last = frontal[3:].expand(len(said), 1, 4)
        pose = torch.cat([torch.cat([rotation, position], 2), last], 1)
        return pack_label(pose, intrinsics.unflatten(1, (3, 3)))
