"""The parts of a model's report: curves of its run, samples, views from all sides, and samples
beside real pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from media.pictures.grids import (
    PANELS,
    Pictures,
    enlarge,
    render_views,
    seed_latent,
    shade_depth,
    stack_rows,
    tile,
    to_pictures,
)
from media.report.charts import Chart, Points
from media.report.page import Block, Section, Shown
from metrics.processes import ALONE
from metrics.realism import Realism
from metrics.reals import RealImages
from metrics.results import read_results
from metrics.sampling import GeneratorSampler
from training.cameras import CameraSummary

GRID_ROWS, GRID_COLUMNS = 4, 8
STRIPS, VIEWS = 3, 7
EXTREMES = 8  # most and least realistic samples
REMEMBERED = 6  # samples that are shown beside their nearest real pictures

# What may differ between points of one curve: the snapshot, and what follows from it or from the
# machine.
OF_THE_SNAPSHOT = {
    "network_sha256",
    "open_eg3d",
    "device",
    "hardware",
    "neural_rendering_resolution",
    "detector_software",
}
# of how it was measured, rather than of the model
NO_CURVES = ("_std", "_pictures", "_seen", "_angle_degrees", "_coverage")
STATISTICS = {
    "Losses": ("Loss/G", "Loss/D"),
    "Logits of D": ("Logits/real", "Logits/fake"),
    "R1 penalty": ("Loss/R1",),
    "Spread of depth": ("Depth/spread",),
    "Probability of augmentation": ("Augment/p",),
    "Images per second": ("Progress/images_per_second",),
}


# --------------------------------------------------------------------------------------------------
# Curves


def curves_section(
    folders: Iterable[Path],
    protocols: Mapping[str, Mapping[str, Any]],
    kimg_of: Callable[[str], float | None],
) -> Section:
    """Curves of the metrics and statistics that lie in folders.

    Args:
        protocols: of the metrics in the report, by name; only results of the same protocol are
            drawn with them.
        kimg_of: training length of a network by its name, for results that do not hold it.
    """
    places = list(dict.fromkeys(folders))
    lines: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(path for folder in places for path in folder.glob("metric-*.jsonl")):
        for line in read_results(path):
            lines.setdefault(str(line.get("metric")), []).append(line)
    lines.pop("speed", None)  # says more about the machine of the moment than about the snapshot
    names = [
        *(name for name in protocols if name in lines),
        *(name for name in lines if name not in protocols),
    ]
    charts = [
        chart
        for name in names
        for chart in metric_charts(lines[name], protocols.get(name), kimg_of)
    ]
    charts += [chart for folder in places for chart in statistics_charts(folder / "stats.jsonl")]
    text = (
        "Metrics of the run's snapshots, drawn where they were measured with the same protocol, and"
        " the training's own statistics."
    )
    return Section(
        "Curves",
        text if charts else "There are no results or statistics of a run beside the network.",
        charts,
    )


def metric_charts(
    lines: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any] | None,
    kimg_of: Callable[[str], float | None],
) -> list[Chart]:
    """A chart for each value of one metric's results. Where a snapshot was measured twice, the
    later result counts.
    """
    wanted = comparable(protocol if protocol is not None else lines[-1].get("protocol", {}))
    values: dict[str, dict[float, float]] = {}
    for line in lines:
        kimg = (
            line["kimg"]
            if isinstance(line.get("kimg"), (int, float))
            else kimg_of(str(line.get("network")))
        )
        if kimg is None or comparable(line.get("protocol", {})) != wanted:
            continue
        for name, value in line["results"].items():
            if isinstance(value, (int, float)) and not name.endswith(NO_CURVES):
                values.setdefault(name, {})[kimg] = value
    return [Chart(name, {name: sorted(points.items())}) for name, points in values.items()]


def comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a protocol that results on one curve must share."""
    return {
        name: value
        for name, value in protocol.items()
        if name not in OF_THE_SNAPSHOT and value is not None
    }


def statistics_charts(path: Path) -> list[Chart]:
    """Charts of a run's stats.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    series: dict[str, list[tuple[float, float]]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            kimg = float(line.pop("kimg"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that a crash cut off
        for name, value in line.items():
            if isinstance(value, (int, float)):
                series.setdefault(name, []).append((kimg, float(value)))
    charts = []
    for title, names in STATISTICS.items():
        lines: dict[str, Points] = {
            name.split("/")[1]: series[name] for name in names if name in series
        }
        if any(value for points in lines.values() for _, value in points):
            charts.append(Chart(title, lines))
    return charts


# --------------------------------------------------------------------------------------------------
# Pictures of the model


@torch.no_grad()
def samples_section(sampler: GeneratorSampler, batch: int) -> Section:
    """The first fakes, from the cameras that the metrics see them from: picture and depth."""
    count = GRID_ROWS * GRID_COLUMNS
    outputs = []
    for start, size in sampler.batches(count, batch, ALONE, "Samples"):
        c = sampler.cameras(start, size)
        out: Any = sampler.render(sampler.ws(sampler.latents(start, size), c), c, start)
        outputs.append(
            (to_pictures(out.image), out.image_depth.float().cpu(), out.alpha.float().cpu())
        )
    images, depths, alpha = zip(*outputs, strict=True)
    pictures = np.concatenate(images)
    depth = enlarge(shade_depth(torch.cat(depths), torch.cat(alpha)), pictures.shape[1])
    grids = [
        Shown(grid(pictures), f"{count} samples"),
        Shown(grid(depth), f"Depth of {count} samples"),
    ]
    last = sampler.seed + count - 1
    return Section(
        "Samples",
        f"Seeds {sampler.seed} to {last}, row by row, not selected, and their depth: near is white,"
        " background black.",
        blocks=[Block(grids, 1)],
    )


def grid(pictures: Pictures) -> Pictures:
    """All samples in one picture."""
    return tile(pictures, GRID_ROWS, GRID_COLUMNS)


@torch.no_grad()
def views_section(sampler: GeneratorSampler, cameras: CameraSummary, batch: int) -> Section:
    """Some fakes as they turn: picture, rendering before super-resolution, depth and normals."""
    model: Any = sampler.model
    yaws, frontal = cameras.default_yaws(VIEWS), cameras.frontal_label()
    labels = cameras.label(yaws, cameras.pitch)
    shown = []
    for seed in range(sampler.seed, sampler.seed + STRIPS):
        z = seed_latent(seed, model.z_dim).to(sampler.device)
        ws = sampler.ws(z, frontal[None].to(sampler.device))
        torch.manual_seed(seed)  # for models whose super-resolution asks for random noise
        strip = render_views(
            model, ws, labels, sampler.neural_rendering_resolution, batch, kinds=PANELS
        )
        shown.append(
            Shown(
                stack_rows(strip, PANELS),
                f"Seed {seed} from {len(yaws)} sides: picture, rendering, depth, normals",
                f"Seed {seed}",
            )
        )
    degrees = ", ".join(f"{math.degrees(yaw):.0f}" for yaw in yaws)
    text = (
        f"Yaws of {degrees} degrees; from above: the picture, the rendering before"
        " super-resolution, the depth, the normals (red to the right, green up, blue towards the"
        " camera)."
    )
    return Section("Views, depth and normals", text, blocks=[Block(shown, 1)])


# --------------------------------------------------------------------------------------------------
# Beside real pictures


def realism_sections(
    sampler: GeneratorSampler, reals: RealImages, realism: Realism
) -> list[Section]:
    """Most and least realistic fakes, and fakes beside the real pictures that are nearest to
    them.
    """
    order = realism.order
    most, least = order[:EXTREMES], order[::-1][:EXTREMES]
    searched = (
        f"{realism.reals} of the {realism.data_pictures}"
        if realism.reals < realism.data_pictures
        else f"all {realism.reals}"
    )
    text = (
        f"Of {len(order)} samples: those nearest to and farthest from a real picture, by the"
        f" distance of features ({realism.detector}) to the nearest of {searched} real pictures."
    )
    extremes = [
        Block(
            [fake_picture(sampler, realism, index) for index in chosen], min(EXTREMES, 8), heading
        )
        for heading, chosen in (("Most realistic", most), ("Least realistic", least))
    ]
    return [
        Section("Most and least realistic", text, blocks=extremes),
        memory_section(sampler, reals, realism, order[:REMEMBERED]),
    ]


def memory_section(
    sampler: GeneratorSampler, reals: RealImages, realism: Realism, chosen: np.ndarray
) -> Section:
    """Fakes and their nearest real pictures, side by side."""
    text = (
        "The samples that come nearest to a training picture, each followed by its nearest ones."
        " The median distance to the nearest real picture is"
        f" {np.median(realism.distances[:, 0]):.4g} for samples and"
        f" {np.median(realism.between_reals):.4g} for real pictures (to another one):"
        f" {realism.ratio:.2f} times as far. Far below 1 would mean that pictures were learnt by"
        " heart."
    )
    if realism.reals < realism.data_pictures:
        text += (
            f" Only {realism.reals} of {realism.data_pictures} pictures were searched; a metric"
            " that ends in _full searches all."
        )
    shown = []
    for index in chosen.tolist():
        shown.append(fake_picture(sampler, realism, index))
        pictures = reals.read(realism.indices[index]).movedim(1, -1).numpy()
        for picture, place, distance in zip(
            pictures,
            realism.indices[index].tolist(),
            realism.distances[index].tolist(),
            strict=True,
        ):
            name = picture_name(reals, place)
            shown.append(Shown(picture, f"Training picture {name}", f"{name}, {distance:.4g}"))
    columns = 1 + realism.indices.shape[1]
    return Section("Nearest training pictures", text, blocks=[Block(shown, columns)])


def fake_picture(sampler: GeneratorSampler, realism: Realism, index: int) -> Shown:
    """Fake number `index` with its distance."""
    seed = sampler.seed + index
    picture = sampler(index, 1)[0].movedim(0, -1).cpu().numpy()
    return Shown(
        picture, f"Sample of seed {seed}", f"seed {seed}, {realism.distances[index, 0]:.4g}"
    )


def picture_name(reals: RealImages, place: int) -> str:
    """File name of a real picture; says so if it is a mirror image."""
    if not reals.names:
        return f"number {place}"
    name = Path(reals.names[place % len(reals.names)]).name
    return name if place < len(reals.names) else f"{name} (mirrored)"
