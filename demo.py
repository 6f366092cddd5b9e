"""`make demo`: show the model that comes with the program, train the built-in heads in the time of
a coffee break, small pictures first, and show what came of it.

How much a machine can do is measured, and the sizes of the networks follow from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cli.values import FiniteRange
from data_tools.convert import ConvertConfig, convert
from data_tools.heads.dataset import BUILT_IN, HeadsConfig, generate_heads, random_labels
from dnnlib.console import HELP, UserError, run_cli
from dnnlib.files import atomic_write, cache_dir, make_dir
from dnnlib.numbers import counted
from media.avatar.write import write_avatars
from media.meshes.shapes import extract_mesh, save_mesh
from media.pictures.grids import identity_grid, save_png
from media.report.charts import Chart
from media.report.page import Block, Figure, Report, Section, Shown, report_page
from metrics.results import read_results
from open_eg3d import SHIPPED_MODEL, load_generator, map_latents, seed_latents
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import library
from training.cameras import cameras_of
from training.config.presets import make_config, r1_gamma
from training.config.settings import Config, Precision, set_option
from training.gan.trainer import Trainer
from training.networks.generator import Generator
from training.run.folder import STATS_FILE
from training.run.launch import newest_snapshot
from training.run.settings import default_precision

IDENTITIES, VIEWS = 6, 5
MESH_RESOLUTION = 160
HEADS = 3000  # pictures to train on: more than are shown in twenty minutes
# Small batches, large steps and little to hold the discriminator back: with the laptop sizes' own
# recipe there is no face after twenty minutes of a slow machine.
BATCH = 8
MOST_PROCESSES = BATCH // 4  # each takes a group of the minibatch statistics
RECIPE = (f"training.batch={BATCH}", "training.ema_kimg=0.5", "training.blur_sigma=0")
LEARNING_RATES = {"generator": (0.006, 0.004), "discriminator": (0.004, 0.003)}  # by stage
PROBE_STEPS = 4
SMALL_SHARE = 0.5  # of the time, on pictures of half the size
STRIP_HEADS = 8
YARDSTICK = (
    "Distance of fakes to real heads in the features of a network, lower is better: two sets of"
    " real heads are 3 apart; real heads made smaller, to 48, 40 and 32 pixels, and enlarged again"
    " are 20, 32 and 51 from real heads."
)


@dataclass(frozen=True)
class Rung:
    """Sizes for a machine of some speed.

    Attributes:
        slowest: Images a second, of pictures of 32 pixels with these networks, that make it worth
            while.
        networks: Settings of both stages.
    """

    name: str
    slowest: float
    networks: tuple[str, ...]


LADDER = (
    Rung("wide", 60.0, ("discriminator.channel_base=1536", "discriminator.channel_max=192")),
    Rung(
        "narrow",
        0.0,
        (
            "generator.channel_base=1536",
            "discriminator.channel_base=768",
            "superresolution.channels=[16]",
            "rendering.depth_resolution=8",
            "rendering.depth_resolution_importance=8",
        ),
    ),
)
# what the second stage changes: all pixels are rendered
LARGER = ("superresolution.input_resolution=64", "rendering.resolution=64")


@click.command(context_settings=HELP)
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default="demo",
    help="Folder for all files.",
)
@click.option(
    "--minutes",
    type=FiniteRange(0, min_open=True),
    default=18.0,
    help="Training time.",
)
@click.option(
    "--heads",
    type=click.IntRange(16),
    default=HEADS,
    help="Pictures to train on.",
)
def main(outdir: Path, minutes: float, heads: int) -> None:
    """Show the shipped heads; train new ones and show them, too: OUTDIR/index.html. A second call
    trains on.
    """
    outdir = outdir.resolve()
    make_dir(outdir)
    with library.path("reference"):  # compiling takes minutes: there is something to see before
        show_grid(load_generator(SHIPPED_MODEL), outdir / "shipped.png")
    click.echo(f"Heads that come with the program: {outdir / 'shipped.png'}")
    shipped = show(SHIPPED_MODEL, outdir, "shipped")
    runs = [outdir / "small", outdir / "large"]
    data = rendered_heads(heads)
    train(runs, data, minutes)
    network = newest_snapshot(runs[-1])
    page = outdir / "index.html"
    new = show(network, outdir, "heads")
    figures = measure(network, data[BUILT_IN.resolution], outdir)
    write_page(page, [shipped, new], figures, runs)
    click.echo(f"Model: {network}\nOpen {page} in a browser")


# --------------------------------------------------------------------------------------------------
# Training


def settings_of(rung: Rung, resolution: int) -> list[str]:
    """Assignments of a stage."""
    stage = int(resolution == BUILT_IN.resolution)
    return [
        *RECIPE,
        f"training.gamma={r1_gamma(resolution, 2 * BATCH):g}",
        *(f"training.lr_{network}={rates[stage]}" for network, rates in LEARNING_RATES.items()),
        f"generator.plane_resolution={resolution}",
        *(LARGER if stage else rung.networks),
    ]


def process_count() -> int:
    """Processes that train: on a CPU one for each core, up to `MOST_PROCESSES`; on a GPU one."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, MOST_PROCESSES)


def choose_rung() -> Rung:
    """The widest networks that this machine trains fast enough, by trying a few steps of one
    process.
    """
    processes, device = process_count(), "cuda" if torch.cuda.is_available() else "cpu"
    precision = default_precision(device, "heads")
    for rung in LADDER:
        speed = processes * images_a_second(rung, precision, device)
        if speed >= rung.slowest:
            break
    click.echo(
        f"This machine trains about {speed:.0f} pictures of {BUILT_IN.resolution // 2} pixels a"
        f" second with {rung.name} networks in {precision}, in"
        f" {counted(processes, 'process', 'processes')}: these it is"
    )
    return rung


def images_a_second(rung: Rung, precision: Precision, device: str) -> float:
    """Speed of one process; on a CPU of one thread, by the clock of the processor."""
    keep_freed_memory()
    config = make_config("heads", BUILT_IN.resolution // 2, "laptop")
    for assignment in settings_of(rung, config.model.resolution):
        set_option(config, assignment)
    config.training.precision = precision
    config.training.batch = BATCH // process_count()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _probe(config, torch.device(device))
    finally:
        torch.set_num_threads(threads)


def _probe(config: Config, device: torch.device) -> float:
    batch = config.training.batch
    labels = random_labels(seed=0, identity=0, count=batch)
    trainer = Trainer(config, labels, device)
    size = config.model.resolution
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = 0.0
    for step in range(1 + PROBE_STEPS):
        if step == 1:  # the first one compiles and allocates
            start = clock()
        trainer.step(torch.rand(batch, 3, size, size) * 2 - 1, labels)
        trainer.statistics.collect()  # waits for a GPU
    return batch * PROBE_STEPS / (clock() - start)


def rendered_heads(count: int) -> dict[int, Path]:
    """Data sets of `count` heads by resolution, rendered the first time; the small pictures are the
    large ones made smaller.
    """
    large = BUILT_IN.resolution
    half = large // 2
    found = {size: cache_dir() / f"heads{size}-{count}.zip" for size in (half, large)}
    if not found[large].exists():
        generate_heads(found[large], HeadsConfig(count, large, views_per_identity=1))
    if not found[half].exists():
        convert(str(found[large]), found[half], ConvertConfig(resolution=half))
    return found


def train(runs: Sequence[Path], data: dict[int, Path], minutes: float) -> None:
    """Train on small pictures, then go on with those of twice the size; what has been begun is
    continued as it was begun instead.
    """
    small, large = runs
    if has_checkpoint(large):
        run_train(["--outdir", large, "--resume", "latest"], minutes)
        return
    rung = choose_rung()
    (few, small_pictures), (many, large_pictures) = data.items()
    options: list[str | Path] = ["--outdir", small]
    if has_checkpoint(small):
        options += ["--resume", "latest"]
    else:
        options += ["--data", small_pictures, *assignments(rung, few)]
    run_train(options, minutes * SMALL_SHARE)
    options = ["--outdir", large, "--data", large_pictures, "--init-from", newest_snapshot(small)]
    run_train([*options, *assignments(rung, many)], minutes * (1 - SMALL_SHARE))


def has_checkpoint(outdir: Path) -> bool:
    """Whether a run there can go on."""
    return outdir.exists() and any(outdir.glob("*/*.pkl"))


def assignments(rung: Rung, resolution: int) -> list[str]:
    """Options of train.py for `settings_of`."""
    options = ["--cfg", "heads", "--mirror", "--kimg", "1000"]
    for setting in settings_of(rung, resolution):
        options += ["--set", setting]
    return options


def run_train(options: Sequence[str | Path], minutes: float) -> None:
    """Train for some minutes."""
    command = ["train.py", *options, "--minutes", f"{minutes:g}"]
    environment = {}
    if not torch.cuda.is_available():
        # Processes of one thread wait less for one another than threads of one process do.
        processes = process_count()
        command += ["--procs", str(processes)]
        environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // processes, 1))
    run_program(command, environment)


def run_program(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run a program of the project in a process of its own, with more variables in its environment.

    Raises:
        UserError: if it fails; it has said why.
    """
    words = list(map(str, command))
    click.echo("python " + " ".join(words))
    status = subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parent,
        env={**os.environ, **(environment or {})},
    ).returncode
    if status:
        raise UserError(f"{words[0]} ended with exit status {status}; see above")


# --------------------------------------------------------------------------------------------------
# What is shown


@dataclass(frozen=True)
class Files:
    """What `show` wrote."""

    grid: Path
    mesh: Path
    avatar: Path


@torch.no_grad()
def show(snapshot: Path, outdir: Path, name: str) -> Files:
    """Write the picture of identities x yaws, NAME.png, the mesh of the first identity, NAME.glb,
    and a page on which the heads turn, NAME.html.
    """
    generator = load_generator(snapshot, reuse_memory=True)
    files = Files(*(outdir / f"{name}.{ending}" for ending in ("png", "glb", "html")))
    show_grid(generator, files.grid)
    planes = generator.planes(latents(generator)[:1])
    level_cameras = cameras_of(generator).grid()
    save_mesh(files.mesh, extract_mesh(generator, planes, level_cameras, MESH_RESOLUTION))
    write_avatars(files.avatar, generator, range(IDENTITIES), title=f"Heads of {snapshot.name}")
    return files


def show_grid(generator: Generator, path: Path) -> None:
    """Write the picture of identities x yaws."""
    cameras = cameras_of(generator)
    labels = cameras.label(cameras.default_yaws(VIEWS), cameras.pitch)
    save_png(path, identity_grid(generator, latents(generator), labels))


def latents(generator: Generator) -> Tensor:
    """Of the identities shown, (IDENTITIES, num_ws, w_dim)."""
    return map_latents(generator, seed_latents(generator, range(IDENTITIES)), truncation_psi=0.8)


def film_strip(runs: Sequence[Path]) -> list[Shown]:
    """The same heads at every checkpoint, the first row of the pictures that training wrote."""
    frames = []
    for run in runs:
        stage = newest_snapshot(run).parent
        for path in sorted(stage.glob("fakes-*.png"), key=lambda path: path.stem):
            kimg = float(path.stem.rpartition("-")[2])
            picture = Image.open(path).convert("RGB")
            size = json.loads((stage / "training_options.json").read_text())["model"]["resolution"]
            row = picture.crop((0, 0, min(picture.width, STRIP_HEADS * size), size))
            shown = row.resize((row.width * 128 // size, 128), Image.Resampling.BICUBIC)
            words = f"{size} pixels, after {kimg:g} thousand pictures"
            frames.append(Shown(np.asarray(shown), f"Heads of {words}", words))
    return frames


def curves(runs: Sequence[Path]) -> list[Chart]:
    """Losses and spread over the course of each stage."""
    charts = []
    for run in runs:
        rows = [
            json.loads(line)
            for line in (newest_snapshot(run).parent / STATS_FILE).read_text().splitlines()
        ]
        for title, names in (
            ("losses", {"generator": "Loss/G", "discriminator": "Loss/D"}),
            ("spread of seeds, of the reals'", {"pixels": "Spread/pixels"}),
        ):
            lines = {
                name: [(row["kimg"], row[key]) for row in rows if key in row]
                for name, key in names.items()
            }
            charts.append(Chart(f"{run.name}: {title}", lines))
    return charts


def measure(network: Path, data: Path, outdir: Path) -> list[Figure]:
    """The distance of 1,000 fakes to the pictures that were trained on."""
    name = "fid1k_full_lite0"
    options: list[str | Path] = ["--network", network, "--data", data, "--metrics", name]
    run_program(["calc_metrics.py", *options, "--outdir", outdir])
    result = read_results(outdir / f"metric-{name}.jsonl")[-1]
    return [Figure(name, result["results"], result["protocol"], YARDSTICK)]


def write_page(
    path: Path, shown: Sequence[Files], figures: Sequence[Figure], runs: Sequence[Path]
) -> None:
    """Write the page that shows everything; it opens from disk."""
    shipped, new = shown
    newest = newest_snapshot(runs[-1])
    network = os.path.relpath(newest)
    sections = [
        Section(
            "Heads that come with the program",
            "Drag them. Each is a scene of its own, from a model that was trained like this one,"
            " for longer.",
            frame=shipped.avatar.name,
            links={"Grid: colour, rendering, depth": shipped.grid.name, "Mesh": shipped.mesh.name},
        ),
        Section(
            "Heads of today",
            "What this machine learnt just now, from single pictures with their cameras.",
            frame=new.avatar.name,
            links={"Grid: colour, rendering, depth": new.grid.name, "Mesh": new.mesh.name},
        ),
        Section(
            "How they came about",
            "The same eight heads at every checkpoint: small pictures first, then larger ones.",
            charts=curves(runs),
            blocks=[Block(film_strip(runs))],
        ),
        Section(
            "To try next",
            "A second make demo trains on.",
            commands=[
                f"python gen_samples.py --network {network} --seeds 0-15 --outdir out",
                f"python gen_videos.py --network {network} --seeds 0-3 --outdir out",
                "python viewer.py --network models/heads64.pkl",
            ],
        ),
    ]
    report = Report("Heads learnt in a coffee break", {"Model": network}, figures, sections)
    with atomic_write(path) as file:
        file.write(report_page(report).encode())


if __name__ == "__main__":
    run_cli(main)
