"""From photos to identities: python invert.py --network ckpt.pkl photo.jpg."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import copy
import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from cli.devices import device_option
from cli.photos import (
    PhotoOptions,
    Subject,
    data_set_subjects,
    each_photo,
    named_photos,
    open_data,
    parse_label,
    read_file,
    read_poses,
    subjects_of,
)
from cli.rendering import network_option, outdir_option
from cli.values import FiniteRange
from data_tools.faces.estimators import MEDIAPIPE, estimators_closed
from dnnlib.console import UserError, progress, run_cli
from dnnlib.files import atomic_write, make_dir
from media.pictures.grids import save_png
from media.pictures.inversion_sheet import VIEWS, inversion_sheet
from open_eg3d import export, map_latents, seed_latents
from open_eg3d.inverting import choose_perceptual, make_objective
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32
from training.cameras import cameras_of
from training.inversion.directions import supervised_directions
from training.inversion.inversion import (
    METHODS,
    Inversion,
    InversionSettings,
    invert_pictures,
    plain_settings,
)
from training.inversion.latents import OnStep
from training.inversion.objective import Perceptual
from training.networks.generator import Generator

DEFAULT_SECONDS = 120.0
GUESSED_PRIOR = 1.0  # of a portrait's place and distance, where its crop is a guess
SHARES = {"camera": 0, "latents": 1, "tuning": 2}  # order of the phases in a progress bar


@dataclass(frozen=True, eq=False)
class Inverter:
    """What all pictures of a call share."""

    generator: Generator
    network: str
    settings: InversionSettings
    perceptual: tuple[Perceptual, str]
    outdir: Path
    optimise_pose: bool

    def run(self, subjects: list[Subject], name: str, on_step: OnStep) -> Inversion:
        """Invert the pictures of one person, and write the three files."""
        resolution, device = self.generator.config.resolution, next(self.generator.parameters())
        pictures = [one.picture for one in subjects]
        objective = make_objective(pictures, None, resolution, self.perceptual).to(device.device)
        labels = [one.label for one in subjects if one.label is not None]
        is_guessed = any(one.label is not None and not one.is_exact for one in subjects)
        settings = self.settings
        if is_guessed:
            latents = dataclasses.replace(settings.latents, pose_prior=GUESSED_PRIOR)
            settings = dataclasses.replace(settings, latents=latents)
        inversion = invert_pictures(
            self.generator,
            objective,
            torch.stack(labels) if len(labels) == len(subjects) else None,
            settings,
            optimise_pose=self.optimise_pose or is_guessed,
            on_step=on_step,
        )
        self._write(inversion, name, [one.source for one in subjects])
        return inversion

    def _write(self, inversion: Inversion, name: str, sources: list[str]) -> None:
        """NAME.pkl, NAME.png and, as the sign that all is done, NAME.json."""
        holder, cameras = copy.copy(inversion.generator), cameras_of(self.generator)
        # tuned weights show other identities no longer as they were
        kept = {} if holder is not self.generator and inversion.method == "pti" else holder.latents
        source = ", ".join(Path(one).name for one in sources)
        holder.latents = {**kept, name: inversion.entry(source)}
        export(holder, self.outdir / f"{name}.pkl")
        save_png(
            self.outdir / f"{name}.png",
            inversion_sheet(
                inversion.generator,
                inversion.ws,
                inversion.labels[0],
                inversion.objective.images[0],
                cameras,
                cameras.default_yaws(VIEWS),
                cameras.pitch,
            ),
        )
        report = {
            "name": name,
            "sources": sources,
            "network": self.network,
            "compared": self.perceptual[1],
            "settings": plain_settings(self.settings),
            "seconds": round(inversion.seconds, 3),
            "losses": {key: round(value, 5) for key, value in inversion.losses.items()},
            "poses": inversion.poses,
            "labels": [[round(value, 7) for value in c] for c in inversion.labels.tolist()],
        }
        with atomic_write(self.outdir / f"{name}.json") as file:
            file.write(json.dumps(report, indent=2).encode())

    def is_done(self, name: str) -> bool:
        """Whether an earlier call has written a picture's files with the same settings.

        Raises:
            UserError: if it had others.
        """
        path = self.outdir / f"{name}.json"
        if not path.exists():
            return False
        try:
            known = json.loads(path.read_bytes())
            same = known["settings"] == json.loads(json.dumps(plain_settings(self.settings)))
            same = same and known["network"] == self.network
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no report of an inversion; remove it") from error
        if not same:
            raise UserError(
                f"{path} was made with other settings or another network; choose another --outdir"
            )
        return True


def line_of(name: str, inversion: Inversion) -> str:
    """One line about a finished picture."""
    pose = inversion.poses[0]
    sure = f" (sure {pose['sure']:.2f})" if "sure" in pose else ""
    return (
        f"{name}: {inversion.losses['psnr']:.1f} dB, yaw {pose['yaw']:.1f}, pitch"
        f" {pose['pitch']:.1f}{sure}, {inversion.seconds:.0f} s"
    )


def with_bar(inverter: Inverter, subjects: list[Subject], name: str) -> None:
    """Invert with a progress bar, and print a line."""
    nothing: list[Any] = []
    total = 100 * len(SHARES)
    with progress(nothing, name, total=total, unit="%") as bar:

        def tell(phase: str, done: float, loss: float) -> None:
            bar.set_postfix_str(f"{phase}, loss {loss:.3f}", refresh=False)
            bar.update(int(100 * (SHARES[phase] + done)) - bar.n)

        inversion = inverter.run(subjects, name, tell)
        bar.update(total - bar.n)
    click.echo(line_of(name, inversion))


def invert_photos(
    inverter: Inverter, found: Iterator[list[Subject]], same_person: str | None
) -> None:
    """Invert named photos: each face, or all together as one person of that name."""
    if same_person is not None:
        together = [subjects[0] for subjects in found]
        with_bar(inverter, together, same_person)
        return
    for subjects in found:
        if len(subjects) > 1:
            names = ", ".join(one.name for one in subjects)
            click.echo(f"{subjects[0].source}: {len(subjects)} faces, the largest first: {names}")
        for one in subjects:
            with_bar(inverter, [one], one.name)


def invert_data(inverter: Inverter, data: str, options: PhotoOptions) -> None:
    """Invert each picture of a data set or of a folder of photos that has no report yet.

    Raises:
        UserError: if none of them could be inverted.
    """
    files, pictures, dataset = open_data(data)
    cameras, resolution = cameras_of(inverter.generator), inverter.generator.config.resolution
    done, failed = 0, []
    for index, (name, file) in enumerate(pictures):
        where = f"[{index + 1}/{len(pictures)}]"
        if inverter.is_done(name):
            done += 1
            click.echo(f"{where} {name}: there already")
            continue
        try:
            subjects = (
                data_set_subjects(dataset, index, name)
                if dataset
                else subjects_of(
                    name,
                    file,
                    files.read(file),
                    files.where(file),
                    options,
                    cameras,
                    resolution,
                )[:1]
            )
        except UserError as error:
            failed.append(str(error))
            click.echo(f"{where} {name}: {error}", err=True)
            continue
        inversion = inverter.run(subjects, name, lambda *_: None)
        done += 1
        click.echo(f"{where} {line_of(name, inversion)}")
    if not done:
        raise UserError(
            f"none of {len(pictures)} pictures could be inverted; the first: {failed[0]}"
        )
    if failed:
        click.echo(f"{len(failed)} of {len(pictures)} pictures were left out", err=True)


def write_directions(generator: Generator, scores: Path, dest: Path) -> None:
    """Write the network with directions found from the scores of seeds.

    Raises:
        UserError: if the table cannot be used.
    """
    rows = list(csv.DictReader(io.StringIO(read_file(scores).decode("utf-8", "replace"))))
    try:
        seeds = [int(row["seed"]) for row in rows]
        table = {
            name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {"seed": 0})
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{scores} is no table of scores; its first line is seed,TRAIT,... and each other one"
            " has a seed and numbers"
        ) from error
    del table["seed"]
    if not table or not rows:
        raise UserError(f"{scores} holds no scores; its first line is seed,TRAIT,...")
    w = map_latents(generator, seed_latents(generator, seeds))[:, 0]
    found = supervised_directions(generator, w, table)
    generator.directions = {**generator.directions, **found}
    export(generator, dest)
    click.echo(f"Wrote {dest} with the directions {', '.join(found)}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path))
@network_option
@click.option("--data", metavar="ZIP|DIR", help="A data set, or a folder of photos; resumable.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="pti",
    show_default=True,
    help="w: one latent; w+: one per layer; pti: w+, then the network's weights are tuned.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0.0),
    help=f"Time for a person.  [default: {DEFAULT_SECONDS:.0f}, unless --steps]",
)
@click.option(
    "--steps",
    type=(click.IntRange(1), click.IntRange(1)),
    metavar="N M",
    help="N steps for latents and M for weights, however long they take.",
)
@click.option("--label", help="Camera of photos that are cut out: 25 numbers, or a JSON file.")
@click.option(
    "--poses",
    type=click.Path(path_type=Path),
    help="Their cameras by file name, in the form of dataset.json.",
)
@click.option(
    "--optimise-pose",
    is_flag=True,
    help="Optimise the camera too; without a label look for it, in photos that are cut out.",
)
@click.option("--optimise-focal", is_flag=True, help="Optimise the focal length with the pose.")
@click.option(
    "--estimator",
    default=MEDIAPIPE,
    show_default=True,
    help="Finds faces: mediapipe, or MODULE:FUNCTION.",
)
@click.option("--face", type=click.IntRange(1), help="Which face, 1 the largest.  [default: all]")
@click.option(
    "--mask",
    "masks",
    type=click.Path(path_type=Path),
    multiple=True,
    help="White where a photo counts; once for each photo.  [default: its alpha channel]",
)
@click.option("--same-person", metavar="NAME", help="The photos are of one person.")
@click.option(
    "--lpips-weights",
    multiple=True,
    metavar="FILE|URL",
    help="LPIPS' weights, once or twice.  [default: lite0 features if installed]",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="Instead: find directions from a table seed,TRAIT,... and write --dest.",
)
@click.option("--dest", type=click.Path(path_type=Path), help="Of --scores.")
@outdir_option
@device_option
def main(photos: tuple[Path, ...], network: str, **options: Any) -> None:
    """Find the identity in photos: NAME.pkl, a network that shows it under --latents NAME, NAME.png
    and NAME.json.

    Portraits are found, cut out and posed as by `dataset_tool.py faces`; with a label or
    --optimise-pose photos are taken to be cut out already.
    """
    if options["scores"] is not None:
        if photos or options["data"] or options["dest"] is None:
            raise click.UsageError("--scores goes with --dest and without photos")
        generator = open_generator(network, options["device"])
        write_directions(generator, options["scores"], options["dest"])
        return
    if bool(photos) == bool(options["data"]):
        raise click.UsageError("name photos or --data, one of them")
    if options["label"] and options["poses"]:
        raise click.UsageError("--label and --poses both tell the camera; leave one out")
    use_full_fp32()
    photo_options = PhotoOptions(
        labels=camera_labels(options["label"], options["poses"]),
        is_cut_out=options["optimise_pose"],
        estimator=options["estimator"],
        face=options["face"],
    )
    generator = open_generator(network, options["device"])
    if not generator.cameras and not photo_options.labels and not options["data"]:
        raise UserError(
            f"{network} knows no cameras, so that none can be found; give --label or --poses"
        )
    perceptual = choose_perceptual(options["lpips_weights"], options["device"])
    click.echo(perceptual[1], err=True)
    inverter = Inverter(
        generator,
        network,
        settings_of(options),
        perceptual,
        make_dir(options["outdir"]),
        options["optimise_pose"],
    )
    with estimators_closed():
        if options["data"]:
            invert_data(inverter, options["data"], photo_options)
        else:
            found = opened(named_photos(photos), options["masks"], photo_options, generator)
            invert_photos(inverter, found, options["same_person"])


def camera_labels(label: str | None, poses: Path | None) -> dict[str, torch.Tensor]:
    """Labels by file name, "" being any."""
    if label is not None:
        return {"": parse_label(label)}
    return read_poses(poses) if poses is not None else {}


def settings_of(options: dict[str, Any]) -> InversionSettings:
    """Settings of the inversions."""
    settings, seconds = InversionSettings(method=options["method"]), options["seconds"]
    latents = dataclasses.replace(settings.latents, optimise_focal=options["optimise_focal"])
    tuning = settings.tuning
    if options["steps"]:
        latents = dataclasses.replace(latents, steps=options["steps"][0])
        tuning = dataclasses.replace(tuning, steps=options["steps"][1])
    elif seconds is None:
        seconds = DEFAULT_SECONDS
    return dataclasses.replace(settings, latents=latents, tuning=tuning, seconds=seconds)


def opened(
    photos: list[tuple[str, Path]],
    masks: tuple[Path, ...],
    options: PhotoOptions,
    generator: Generator,
) -> Iterator[list[Subject]]:
    """The subjects of each photo."""
    cameras, resolution = cameras_of(generator), generator.config.resolution
    for name, path, mask in each_photo(photos, masks):
        data = read_file(path)
        yield subjects_of(name, path.name, data, str(path), options, cameras, resolution, mask)


if __name__ == "__main__":
    run_cli(main)
