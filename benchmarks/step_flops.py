"""Where the arithmetic of a training step goes, for the sizes of the demo's ladder and of presets:
python -m benchmarks.step_flops.

Convolutions and matrix products are counted as they run, a multiplication with its addition as two;
the rendering, which is one operator, by its formula.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

import demo
from benchmarks.timing import json_option, show
from data_tools.heads.dataset import random_labels
from dnnlib.console import HELP
from training.config.presets import make_config
from training.config.settings import Config, set_option
from training.gan.trainer import Trainer
from training.run.settings import enlarged

BATCH = 4
DECODED_IN_STEP = 4  # forward, and again with two gradients backward
MEGA = 1e6


def ladder() -> dict[str, Config]:
    """The demo's two stages on each rung, and the heads preset."""
    configs = {}
    for rung in demo.LADDER:
        for resolution in (32, 64):
            config = make_config("heads", 32, "laptop")
            stages = [32] if resolution == 32 else [32, 64]
            for stage in stages:
                if stage == 64:
                    config.model = enlarged(config.model, 64)
                for assignment in demo.settings_of(rung, stage):
                    set_option(config, assignment)
                    if assignment.startswith("superresolution.input_resolution"):
                        config.model.superresolution.channels = (32,)
            configs[f"{rung.name}, {resolution} px"] = config
    configs["--cfg heads, 64 px"] = make_config("heads", 64, "laptop")
    return configs


def decoder_flops(config: Config) -> float:
    """Of one picture: hidden layer and outputs of every sample; coarse ones are decoded twice."""
    rendering, generator = config.model.rendering, config.model.generator
    samples = 2 * rendering.depth_resolution + rendering.depth_resolution_importance
    layers = generator.plane_channels * generator.decoder_hidden + generator.decoder_hidden * 33
    return 2.0 * rendering.resolution**2 * samples * layers


def count(config: Config) -> dict[str, Any]:
    """Millions of operations a picture, by part of a forward pass, and of a whole step."""
    config.training.batch = BATCH
    config.training.d_reg_interval = config.training.g_reg_interval = 10**6
    labels = random_labels(seed=0, identity=0, count=BATCH)
    trainer = Trainer(config, labels, torch.device("cpu"))
    trainer.progress.steps = 1  # lazy regularisers run at step 0
    z = torch.randn(1, config.model.generator.z_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as backbone:
        trainer.G.planes(trainer.G.mapping(z, labels[:1]))
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        fakes = trainer.G(z, labels[:1])
    with torch.no_grad(), FlopCounterMode(display=False) as judged:
        trainer.D(fakes.image, fakes.image_raw, labels[:1])
    size = config.model.resolution
    with FlopCounterMode(display=False) as step:
        trainer.step(torch.zeros(BATCH, 3, size, size), labels)
    decoder = decoder_flops(config)
    superresolution = whole.get_total_flops() - backbone.get_total_flops()
    return {
        "backbone": round(backbone.get_total_flops() / MEGA),
        "decoder": round(decoder / MEGA),
        "super-resolution": round(superresolution / MEGA),
        "discriminator": round(judged.get_total_flops() / MEGA),
        "step": round((step.get_total_flops() / BATCH + DECODED_IN_STEP * decoder) / MEGA),
    }


@click.command(context_settings=HELP)
@json_option
def main(json_path: Path | None) -> None:
    """Print the table."""
    rows = [{"sizes": name, **count(config)} for name, config in ladder().items()]
    show("Millions of operations a picture", rows, json_path)


if __name__ == "__main__":
    main()
