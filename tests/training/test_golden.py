"""Ten seeded training steps give the losses they always gave: a change that should not change
results proves it here.

After a change that is meant to: python -m tests.training.test_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import orbit_labels, pictures, tiny_config
from training.data.dataset import to_float
from training.gan.trainer import Trainer

GOLDEN = Path(__file__).parents[1] / "data" / "golden_losses.json"
NAMES = (
    "Loss/G",
    "Loss/D",
    "Loss/R1",
    "Loss/density",
    "Logits/real",
    "Logits/fake",
    "Gradients/norm_G",
    "Gradients/norm_D",
)
SETTINGS = (
    "augment.mode=fixed",
    "augment.p=0.5",
    "training.batch=8",
    "training.batch_gpu=4",
    "training.d_reg_interval=3",
    "training.g_reg_interval=2",
    "rendering.resolution=12",
    "training.resolution_initial=8",
    "training.resolution_fade_kimg=0.08",
    "training.swap_fade_kimg=0.08",
    "training.blur_fade_kimg=0.06",
    "training.ema_kimg=0.02",
    "rendering.background=[1,0.5,0]",
)
# Other instruction sets and convolution libraries moved these numbers by less than a tenth of this,
# a formula changed by 1 % some of them by dozens of times as much.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def train() -> list[dict[str, float]]:
    """Means of ten steps' statistics; of those that a step has."""
    torch.set_num_threads(1)
    images, labels = to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2)), orbit_labels(16)
    trainer = Trainer(tiny_config(*SETTINGS), labels, torch.device("cpu"))
    steps = []
    for step in range(10):
        chosen = slice(0, 8) if step % 2 else slice(8, 16)
        trainer.step(images[chosen], labels[chosen])
        values = trainer.statistics.collect()
        steps.append({name: values[name]["mean"] for name in NAMES if name in values})
    lags = [
        (p - q).abs().flatten()
        for p, q in zip(trainer.G_ema.parameters(), trainer.G.parameters(), strict=True)
    ]
    steps[-1]["Average/lag"] = 1000 * float(torch.cat(lags).detach().mean())
    steps[-1]["Average/w"] = float(trainer.G_ema.backbone.mapping.w_avg.norm())
    return steps


def test_ten_steps_give_the_golden_losses() -> None:
    golden = json.loads(GOLDEN.read_text())
    found = train()
    assert [sorted(step) for step in found] == [sorted(step) for step in golden]
    for step, (values, expected) in enumerate(zip(found, golden, strict=True)):
        for name in expected:
            assert values[name] == pytest.approx(expected[name], rel=RELATIVE, abs=ABSOLUTE), (
                f"{name} of step {step}"
            )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(train(), indent=1) + "\n")
