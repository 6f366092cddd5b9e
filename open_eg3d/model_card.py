"""The page that describes a model on the Hub: what it is, what it was measured to be, pictures, and
how it is used. Needs the extra `hub`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from dnnlib.console import UserError
from media.pictures.grids import Pictures, tile
from metrics.results import read_results
from open_eg3d.cameras import view_label
from open_eg3d.views import map_latents, render, seed_latents
from training.cameras import cameras_of
from training.checkpoints.checkpoint import load_checkpoint
from training.networks.generator import Generator

PICTURE = "samples.png"
SEEDS, VIEWS = 4, 3  # of the picture: a row per view, a column per seed
PAPER = "https://arxiv.org/abs/2112.07945"

BODY = """\
# {name}

A 3D-aware GAN: from random numbers it makes {what} as pictures from any side, videos and meshes. It
implements EG3D ([Chan et al. 2022]({paper})) in open-eg3d.

![Seeds 0 to {last_seed} from {views} sides]({picture})

```python
from open_eg3d import map_latents, render, seed_latents, view_label
from open_eg3d.hub import PretrainedGenerator

G = PretrainedGenerator.from_pretrained("{name}")
ws = map_latents(G, seed_latents(G, range(4)), truncation_psi=0.7)
views = render(G, ws, view_label(G, yaw_degrees=[-30, 0, 30]))
```

| | |
|---|---|
{facts}

{figures}"""


@dataclass(frozen=True)
class Origin:
    """What a file tells about a model beside its weights.

    Attributes:
        data: Name of the training data. kimg: Thousands of real pictures seen. figures: Value by
            name, as `calc_metrics.py` wrote them beside the file.
    """

    data: str | None = None
    kimg: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def origin_of(path: str | os.PathLike[str]) -> Origin:
    """The origin of a checkpoint of this program on this machine; an empty one for other files."""
    path = Path(path)
    if not path.is_file():
        return Origin()
    figures = _figures_beside(path)
    try:
        checkpoint = load_checkpoint(path)
    except UserError:  # a released snapshot, which tells none of it
        return Origin(figures=figures)
    images = checkpoint.progress.get("images")
    name = Path(checkpoint.config.data.path).name
    return Origin(name or None, None if images is None else images / 1000, figures)


def _figures_beside(path: Path) -> dict[str, float]:
    """The last figures of each metric that were measured on this very file."""
    figures: dict[str, float] = {}
    for results in sorted(path.parent.glob("metric-*.jsonl")):
        for line in read_results(results):
            if Path(str(line.get("network", ""))).name == path.name:
                figures |= {
                    name: value for name, value in line["results"].items() if value is not None
                }
    return figures


def sample_picture(generator: Generator) -> Pictures:
    """A picture (VIEWS * H, SEEDS * W, 3): a row per view, a column per seed."""
    ws = map_latents(generator, seed_latents(generator, range(SEEDS)), truncation_psi=0.7)
    yaws = [math.degrees(yaw) for yaw in cameras_of(generator).default_yaws(VIEWS)]
    pictures = render(generator, ws, view_label(generator, yaw_degrees=yaws)).pictures()
    return tile(pictures.swapaxes(0, 1).reshape(-1, *pictures.shape[2:]), VIEWS, SEEDS)


def model_card(
    generator: Generator,
    data: ModelCardData,
    origin: Origin,
    name: str = "user/model",
    what: str = "heads or other objects",
    **more: Any,
) -> ModelCard:
    """The card of a generator.

    Args:
        data: Its metadata, to which the keywords in `more` are added (license, datasets, ...).
        name: Repository. what: The objects of the model, in the plural.
    """
    values = {**data.to_dict(), "pipeline_tag": "unconditional-image-generation", **more}
    metadata = ModelCardData(**values)
    config, cameras = generator.config, cameras_of(generator)
    ranges = {
        kind: " to ".join(f"{math.degrees(angle):.0f}" for angle in limits)
        for kind, limits in (("yaw", cameras.yaw_range), ("pitch", cameras.pitch_range))
    }
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    facts = {
        "Pictures": f"{config.resolution} pixels, rendered at {config.rendering.resolution}",
        "Parameters": f"{parameters:,}",
        "Planes": f"3 x {config.generator.plane_channels} x {config.generator.plane_resolution}^2",
        "Training data": origin.data or "not told by the file",
        "Length of training": "not told by the file"
        if origin.kimg is None
        else f"{origin.kimg:,.0f} thousand pictures",
        "Cameras seen": "yaw {yaw}, pitch {pitch} degrees".format(**ranges),
        "Licence": more.get("license") or "not told: ask the author before you use it",
    }
    return ModelCard(
        f"---\n{metadata.to_yaml()}\n---\n\n"
        + BODY.format(
            name=name,
            what=what,
            paper=PAPER,
            last_seed=SEEDS - 1,
            views=VIEWS,
            picture=PICTURE,
            facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
            figures=_figures_table(origin.figures),
        )
    )


def _figures_table(figures: dict[str, float]) -> str:
    if not figures:
        return "Nothing has been measured beside this file; `calc_metrics.py` measures.\n"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    return f"Measured by `calc_metrics.py`:\n\n| Figure | Value |\n|---|---|\n{rows}\n"
