"""What is in a checkpoint: python -m training.checkpoints.show --network ckpt.pkl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from dnnlib.console import HELP, run_cli
from dnnlib.files import local_file
from training.checkpoints.checkpoint import is_released, load_checkpoint, load_weights
from training.checkpoints.weights_folder import is_weights_folder
from training.config.settings import Config, config_sections, to_dict
from training.networks.meter import Layer, measure_discriminator, measure_generator

GROUPS = {  # by the beginning of a layer's name; the discriminator's names come with its prefix
    "backbone.mapping": "once an identity",
    "backbone.synthesis": "once an identity",
    "decoder": "every view",
    "(rays)": "every view",
    "superresolution": "every view",
    "D": "training only",
}


KINDS = {"ours": "checkpoint", "released": "released snapshot", "folder": "folder of weights"}


@dataclass
class Contents:
    """What a file holds, in words and numbers."""

    path: Path
    source: str  # ours, released or folder
    config: Config
    networks: dict[str, int]  # parameters and buffers of each network that is there, in numbers
    can_resume: bool
    progress: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, Any] = field(default_factory=dict)
    generator: list[Layer] = field(default_factory=list)
    discriminator: list[Layer] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the file, or of the folder's files."""
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        config = to_dict(self.config)
        return {
            "file": str(self.path),
            "bytes": self.size,
            "source": self.source,
            "networks": self.networks,
            "can_resume": self.can_resume,
            "progress": self.progress,
            "cameras": self.cameras,
            "config": config if self.source == "ours" else {"model": config["model"]},
            "generator": {
                "layers": [layer.to_dict() for layer in self.generator],
                "total": total(self.generator),
            },
            "discriminator": {
                "layers": [layer.to_dict() for layer in self.discriminator],
                "total": total(self.discriminator),
            },
        }


def total(layers: list[Layer]) -> dict[str, int]:
    """Sums over layers."""
    names = ("parameters", "parameter_bytes", "multiply_adds", "output_bytes")
    return {name: sum(getattr(layer, name) for layer in layers) for name in names}


def read_contents(path_or_url: str, resolution: int | None = None) -> Contents:
    """Open a checkpoint of ours, a released snapshot or a folder of weights; nothing in it is run.

    Args:
        resolution: Pixels of the volume rendering for which costs are told; none = the model's own.

    Raises:
        UserError: if the file cannot be read.
    """
    path = local_file(path_or_url)
    if is_weights_folder(path) or is_released(path):
        weights = load_weights(path)
        contents = Contents(
            path,
            "folder" if path.is_dir() else "released",
            Config(model=weights.config),
            _sizes(weights),
            False,
            cameras=_plain(weights.cameras or {}),
        )
    else:
        checkpoint = load_checkpoint(path)
        contents = Contents(
            path,
            "ours",
            replace(checkpoint.config, model=checkpoint.model),
            _sizes(checkpoint),
            bool(checkpoint.optimizers),
        )
        contents.progress = describe_progress(
            checkpoint.progress, checkpoint.augment, checkpoint.config
        )
        contents.cameras = _plain(checkpoint.cameras or {})
    contents.generator = measure_generator(contents.config.model, resolution)
    contents.discriminator = measure_discriminator(contents.config.model, resolution)
    return contents


def _sizes(networks: Any) -> dict[str, int]:
    states = {name: getattr(networks, name) for name in ("G", "D", "G_ema")}
    return {
        name: sum(value.numel() for value in state.values())
        for name, state in states.items()
        if state is not None
    }


def describe_progress(
    progress: dict[str, Any], augment: dict[str, Any], config: Config
) -> dict[str, Any]:
    """How far the run was: kimg of how many, steps, updates skipped, augmentation."""
    shown: dict[str, Any] = {
        "kimg": progress.get("images", 0) / 1000,
        "of_kimg": config.training.kimg,
        "steps": progress.get("steps", 0),
    }
    skipped = {name: count for name, count in progress.get("bad_steps", {}).items() if count}
    return (
        shown
        | ({"skipped_in_a_row": skipped} if skipped else {})
        | ({"augment_p": augment["p"]} if "p" in augment else {})
    )


def _plain(cameras: dict[str, Any]) -> dict[str, Any]:
    """A camera summary with the number of its poses instead of the poses."""
    return {
        name: len(value) if isinstance(value, Tensor) else value for name, value in cameras.items()
    }


# --------------------------------------------------------------------------------------------------
# For people


def report(contents: Contents) -> Iterator[str]:
    """Lines of text."""
    yield f"{contents.path}: {KINDS[contents.source]}, {in_units(contents.size, 'B')}"
    yield "Networks: " + ", ".join(
        f"{name} {count:,} numbers" for name, count in contents.networks.items()
    )
    yield (
        "Training can go on from it."
        if contents.can_resume
        else "For inference, or as a start (--init-from): no optimisers in it."
    )
    if contents.progress:
        yield "Progress: " + ", ".join(
            f"{name} {_short(value)}" for name, value in contents.progress.items()
        )
    if contents.cameras:
        rounding = dict.fromkeys(("pivot", "center"), 1e-5 * contents.cameras.get("radius", 1.0))
        yield "Cameras: " + ", ".join(
            f"{name} {_short(value, rounding.get(name, 0.0))}"
            for name, value in contents.cameras.items()
        )
    yield ""
    yield "Settings (* = not the default)"
    yield from settings(contents)
    for name, layers in (
        ("Generator, one picture", contents.generator),
        ("Discriminator, one picture", contents.discriminator),
    ):
        yield ""
        yield name
        yield from table(layers)
    yield ""
    yield from costs(contents)


def settings(contents: Contents) -> Iterator[str]:
    """All settings, those that differ from the default marked; only a checkpoint of ours has others
    than those of its model.
    """
    defaults, model = (
        config_sections(Config()),
        config_sections(Config()).keys() - {"data", "training", "augment", "snapshot"},
    )
    for name, section in config_sections(contents.config).items():
        if contents.source != "ours" and name not in model:
            continue
        for item in fields(section):
            value = getattr(section, item.name)
            if not is_dataclass(value):
                mark = " " if value == getattr(defaults[name], item.name) else "*"
                yield f"{mark} {name}.{item.name} = {json.dumps(value)}"


def table(layers: list[Layer]) -> Iterator[str]:
    """Rows of a table with a line of sums."""
    sums = total(layers)
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "output memory")]
    rows += [
        (
            layer.name,
            layer.kind,
            _shape(layer),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}",
            in_units(layer.output_bytes, "B"),
        )
        for layer in layers
    ]
    rows.append(
        (
            "sum",
            "",
            "",
            f"{sums['parameters']:,}",
            f"{sums['multiply_adds']:,}",
            in_units(sums["output_bytes"], "B"),
        )
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield "  ".join(left + right).rstrip()


def _shape(layer: Layer) -> str:
    shape = "x".join(map(str, layer.output))
    return shape if layer.calls == 1 else f"{layer.calls} x {shape}"


def costs(contents: Contents) -> Iterator[str]:
    """Sums by when they arise."""
    layers = [(layer.name, layer) for layer in contents.generator] + [
        (f"D.{layer.name}", layer) for layer in contents.discriminator
    ]
    for when in dict.fromkeys(GROUPS.values()):
        starts = tuple(start for start, group in GROUPS.items() if group == when)
        sums = total([layer for name, layer in layers if name.startswith(starts)])
        parameters = f"{sums['parameters']:,} parameters ({in_units(sums['parameter_bytes'], 'B')})"
        yield (
            f"{when.capitalize()}: {in_units(sums['multiply_adds'], '')} multiply-adds,"
            f" {parameters}"
        )


def in_units(number: float, unit: str) -> str:
    """1234567 as 1.2 M, with powers of 1000."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:  # what is more would be rounded to 1000
            return f"{number:.3g} {prefix}{unit}".strip()
        number /= 1000
    return f"{number:.3g} T{unit}"


def _short(value: Any, least: float = 5e-5) -> str:
    """A number in four digits, 0 below `least`, which is rounding."""
    if isinstance(value, float):
        return f"{value if abs(value) >= least else 0.0:.4g}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_short(item, least) for item in value) + ")"
    return str(value)


@click.command(context_settings=HELP)
@click.option(
    "--network",
    required=True,
    metavar="FILE|DIR|URL",
    help="Checkpoint, ours or released, or a folder of weights.",
)
@click.option(
    "--nrr",
    type=click.IntRange(1, 4096),
    help="Neural rendering resolution to count for.  [default: the model's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(network: str, nrr: int | None, as_json: bool) -> None:
    """Print the layers of a checkpoint with what they cost, its settings, and how far its training
    was.
    """
    contents = read_contents(network, nrr)
    click.echo(json.dumps(contents.to_dict(), indent=2) if as_json else "\n".join(report(contents)))


if __name__ == "__main__":
    run_cli(main)
