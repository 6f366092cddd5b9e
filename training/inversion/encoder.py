"""An encoder for a generator: one picture to latents and a camera at once, learnt from the
generator's own samples, whose latents and cameras are known (as GOAE and TriPlaneNet do for 3D
GANs; latents as a mean, an offset for all layers and offsets for each, as in pSp and e4e).
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur, to_pil_image, to_tensor

from dnnlib.console import UserError
from training.cameras import CameraSummary, cameras_of, offset_labels
from training.checkpoints.checkpoint import load_state
from training.inversion.latents import LatentStatistics, rate
from training.inversion.objective import Objective
from training.networks.features import halving_layers
from training.networks.generator import Generator

SIZE = 64  # pixels per side of what the network sees
CHANNELS = (32, 64, 96, 128)  # at 1/2, 1/4, 1/8 and 1/16 of that
HIDDEN = 224
POSE = 6  # turn and shift
YAW_MARGIN = 1.1  # cameras that are learnt, in units of the data's range
JITTER = (0.06, 0.05)  # deviations of roll (radians) and of shifts (radii): crops of photos differ
POOL_BYTES = 1 << 28
CAMERA_WEIGHT = 10.0
LAYER_WEIGHT = 0.1  # of what a layer's own latents differ from the one of all layers


class Encoder(nn.Module):
    """Pictures (N, 3, R, R) in [-1, 1] to latents and cameras of a generator."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_ws: int, w_dim: int) -> None:
        super().__init__()
        self.num_ws, self.w_dim = num_ws, w_dim
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("deviation", torch.ones(()))
        self.features = halving_layers(CHANNELS)
        size = CHANNELS[-1] * (SIZE >> len(CHANNELS)) ** 2
        self.hidden = nn.Sequential(nn.Linear(size, HIDDEN), nn.SiLU())
        self.heads = nn.Linear(HIDDEN, w_dim + POSE)
        self.layers = nn.Linear(HIDDEN, num_ws * w_dim)
        nn.init.zeros_(self.layers.weight)
        nn.init.zeros_(self.layers.bias)

    def forward(self, images: Tensor, cameras: CameraSummary) -> tuple[Tensor, Tensor, Tensor]:
        """One latent for all layers w (N, w_dim), latents ws (N, num_ws, w_dim), cameras (N, 25)"""
        size = (SIZE, SIZE)
        seen = F.interpolate(images, size, mode="bilinear", antialias=True)
        hidden = self.hidden(self.features(seen))
        offset, turn, shift = self.heads(hidden).split([self.w_dim, 3, 3], 1)
        own = LAYER_WEIGHT * self.layers(hidden).unflatten(1, (self.num_ws, self.w_dim))
        w = self.mean + self.deviation * offset
        ws = w[:, None] + self.deviation * own
        frontal = cameras.frontal_label().to(images).expand(len(images), -1)
        return w, ws, offset_labels(frontal, cameras, turn, shift)


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder says of K pictures of one person: latents (1, num_ws, w_dim) and cameras (K,
    25).
    """

    ws: Tensor
    labels: Tensor

    def __getitem__(self, index: int) -> Encoded:
        """The same latents, and the camera of one picture."""
        return Encoded(self.ws, self.labels[index, None])


@torch.no_grad()
def encode(generator: Generator, images: Tensor) -> Encoded | None:
    """What the encoder in the generator's file says of pictures (K, 3, R, R); None if it holds
    none.
    """
    if not generator.encoder:
        return None
    encoder = Encoder(generator.num_ws, generator.w_dim)
    load_state(encoder, generator.encoder, "the file's encoder")
    _, ws, labels = encoder.to(images.device).eval()(images, cameras_of(generator))
    return Encoded(ws.mean(0, keepdim=True), labels)


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is trained.

    Attributes:
        steps, lr: Of Adam, whose rate falls in the second half. batch: Pictures in a step, drawn
            from a pool to which each step adds `fresh` new samples of the generator.
        rendered: Predictions that a step renders in the second half and compares with their
            pictures. seed: Of all that is random.
    """

    steps: int = 20_000
    lr: float = 1e-3
    batch: int = 64
    fresh: int = 8
    rendered: int = 2
    seed: int = 0


class EncoderTrainer:
    """Trains an encoder; `state` and `load` let a later program go on exactly where it stood."""

    def __init__(self, generator: Generator, settings: EncoderSettings) -> None:
        self.generator, self.settings, self.step = generator, settings, 0
        self.cameras, self.device = cameras_of(generator), next(generator.parameters()).device
        statistics = LatentStatistics.of(generator, settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.encoder = Encoder(generator.num_ws, generator.w_dim).to(self.device)
        self.encoder.mean.copy_(statistics.mean)
        self.encoder.deviation.fill_(statistics.deviation)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), settings.lr)
        self.pool: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """All that `load` takes, as tensors and plain values."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "step": self.step,
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pool": self.pool,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            UserError: if it is of other settings, or of a generator of another shape.
        """
        if not isinstance(state, dict) or state.get("settings") != dataclasses.asdict(
            self.settings
        ):
            raise UserError("the state is of another training of an encoder; remove it")
        self.step, self.pool = state["step"], state["pool"]
        load_state(self.encoder, state["encoder"], "the encoder's state")
        self.optimizer.load_state_dict(state["optimizer"])

    def train_step(self) -> dict[str, float]:
        """One step; what it does depends on its number and the state alone. Mean losses: of
        latents (squared deviations), cameras (radians, radii) and pictures (0 in the first half).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + 1 + self.step)
            losses = self._losses()
        done = self.step / self.settings.steps
        self.optimizer.param_groups[0]["lr"] = self.settings.lr * rate(done)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self) -> dict[str, Tensor]:
        self._add_samples(self.settings.fresh if self.pool else self.settings.batch)
        chosen = torch.randint(len(self.pool["w"]), (self.settings.batch,))
        pictures, w, labels = (self.pool[key][chosen] for key in ("pictures", "w", "labels"))
        seen = 2 * augmented(pictures).to(self.device) - 1
        w, labels = w.to(self.device), labels.to(self.device)
        found, ws, found_labels = self.encoder(seen, self.cameras)
        scale = torch.ones(16, device=self.device)
        scale[[3, 7, 11]] = 1 / self.cameras.radius
        losses = {
            "latents": ((found - w) / self.encoder.deviation).square().mean(),
            "cameras": CAMERA_WEIGHT * ((found_labels - labels)[:, :16] * scale).abs().mean(),
            "pictures": found.new_zeros(()),
        }
        if self.step >= self.settings.steps / 2 and self.settings.rendered:
            few = slice(self.settings.rendered)
            out = self.generator.synthesis(ws[few], labels[few])
            losses["pictures"] = Objective(pictures[few].to(seen) / 127.5 - 1)(out).mean()
        return losses

    @torch.no_grad()
    def _add_samples(self, count: int) -> None:
        """Samples of the generator from cameras all over its range, in place of the oldest where
        the pool is full.
        """
        generator, cameras = self.generator, self.cameras
        z = torch.randn(count, generator.z_dim).to(self.device)
        frontal = cameras.frontal_label().to(self.device).expand(count, -1)
        ws = generator.mapping(z, frontal)
        spans = (cameras.yaw_range, cameras.pitch_range)
        yaw, pitch = (_spread(low, high, count) for low, high in spans)
        turn, shift = torch.zeros(count, 3), JITTER[1] * torch.randn(count, 3)
        turn[:, 2] = JITTER[0] * torch.randn(count)
        labels = offset_labels(cameras.label(yaw, pitch), cameras, turn, shift)
        image = generator.synthesis(ws, labels.to(self.device)).image.clamp(-1, 1)
        pictures = ((image + 1) * 127.5).round().to(torch.uint8).cpu()
        new = {"pictures": pictures, "w": ws[:, 0].cpu(), "labels": labels}
        most = max(self.settings.batch, POOL_BYTES // pictures[0].numel())
        self.pool = {
            key: torch.cat([self.pool[key], value])[-most:] if self.pool else value
            for key, value in new.items()
        }


def augmented(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, R, R), uint8, as cameras of all kinds take them, in [0, 1]: other exposure
    and colours, and each a quarter of them blurred and compressed.
    """
    count, quarter = len(pictures), len(pictures) // 4
    gamma = torch.exp(0.2 * torch.randn(count, 1, 1, 1))
    gain = torch.exp(0.1 * torch.randn(count, 3, 1, 1) + 0.1 * torch.randn(count, 1, 1, 1))
    seen = ((pictures / 255) ** gamma * gain).clamp(0, 1)
    sigma = float(0.3 + 1.2 * torch.rand(()))
    seen[:quarter] = gaussian_blur(seen[:quarter], [5, 5], [sigma, sigma])
    for index in range(quarter, 2 * quarter):
        file, quality = io.BytesIO(), int(torch.randint(40, 96, ()))
        to_pil_image(seen[index]).save(file, "JPEG", quality=quality)
        with Image.open(file) as compressed:
            seen[index] = to_tensor(compressed)
    return seen


def _spread(low: float, high: float, count: int) -> Tensor:
    """Angles (count,), evenly random over a range and a little beyond."""
    middle, half = (low + high) / 2, YAW_MARGIN * (high - low) / 2
    return middle + half * (2 * torch.rand(count) - 1)
