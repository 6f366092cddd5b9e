"""Adaptive augmentation: how often, from what the discriminator makes of real images (Karras et al.
2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.config.checks import check_section
from training.config.settings import AugmentConfig
from training.gan.augment import AugmentPipe


class AdaptiveProbability:
    """Sets an AugmentPipe's p as the settings say; with `ada`, from the share of real images that D
    takes for real (section 3, r_t).

    Call `observe` with every batch of D(real) and `end_batch` once after each batch.
    """

    def __init__(self, pipe: AugmentPipe, config: AugmentConfig) -> None:
        """Give `pipe` the probability that `config` starts with (none without augmentation).

        Raises:
            UserError: for settings out of range.
        """
        check_section("augment", config)
        self.pipe, self.config = pipe, config
        # of sign(D(real)), of their number, since the last adjustment, over all processes
        self.sums = torch.zeros(2, device=pipe.p.device)
        self.seen = torch.zeros_like(self.sums)  # the same of this process in this batch
        self.images = 0  # since the last adjustment
        self.batches = 0
        pipe.is_used = config.mode != "noaug"
        pipe.p.fill_(config.p if pipe.is_used else 0.0)

    def observe(self, real_logits: Tensor, where: Tensor | None = None) -> None:
        """Take note of D's logits (any shape) for augmented real images, where `where` (), bool,
        does not say otherwise.
        """
        if self.config.mode == "ada":
            signs = real_logits.detach().float().sign()
            total = signs.sum()
            seen = torch.stack([total, torch.full_like(total, signs.numel())])
            self.seen = self.seen + (seen if where is None else torch.where(where, seen, 0))

    def end_batch(self, batch_size: int, reduce: Callable[[Tensor], Any] | None = None) -> None:
        """Count a batch of `batch_size` images (of all processes together); every `interval`
        batches move p one step, within [0, 1].

        Args:
            batch_size: images, a fixed number a batch.
            reduce: adds a tensor in place over all processes; none = there is one process.
        """
        if self.config.mode != "ada":
            return
        self.images += batch_size
        self.batches += 1
        if reduce is not None:
            reduce(self.seen)
        self.sums = self.sums + self.seen
        self.seen = torch.zeros_like(self.seen)
        if self.batches < self.config.interval:
            return
        # MPS has no float64
        sums = self.sums.cpu() if self.sums.device.type == "mps" else self.sums
        sign_sum, count = sums.double()
        excess = torch.where(count > 0, sign_sum / count - self.config.target, 0)
        step = self.images / (self.config.kimg * 1000)
        self.pipe.p.add_((excess.sign() * step).to(self.pipe.p)).clamp_(0, 1)
        self.sums = torch.zeros_like(self.sums)
        self.images = self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, p included, as plain numbers."""
        return {
            "p": float(self.pipe.p),
            "sums": self.sums.tolist(),
            "images": self.images,
            "batches": self.batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; sets the pipe's p too."""
        self.pipe.p.fill_(state["p"])
        self.sums = torch.tensor(state["sums"], device=self.pipe.p.device)
        self.images, self.batches = int(state["images"]), int(state["batches"])
