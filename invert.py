"""From photos to identities: python invert.py --network ckpt.pkl photo.jpg."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from torch import Tensor

from cli.devices import device_option
from cli.photos import (
    Data,
    Origin,
    PhotoOptions,
    Subject,
    content_of,
    data_set_subjects,
    each_photo,
    named_photos,
    open_data,
    parse_label,
    read_poses,
    settings_for,
    subjects_of,
)
from cli.program import program
from cli.rendering import network_option, outdir_option
from cli.values import FiniteRange
from data_tools.faces.estimators import MEDIAPIPE, estimators_closed
from dnnlib.console import UserError, counter, run_cli
from dnnlib.files import make_dir, read_file
from open_eg3d import export, invert, map_latents, seed_latents
from open_eg3d.identity_files import checked_dest, is_done, weights_content, write_identity
from open_eg3d.inverting import choose_perceptual, train_encoder
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32
from training.cameras import cameras_of
from training.checkpoints.identities import LONGEST_NAME, check_name, unique_names
from training.inversion.directions import read_scores, supervised_directions
from training.inversion.encoder import EncoderSettings
from training.inversion.inversion import (
    METHODS,
    Inversion,
    InversionSettings,
    chosen_method,
    plain_settings,
)
from training.inversion.latents import OnStep
from training.inversion.objective import Perceptual
from training.networks.generator import Generator

DEFAULT_SECONDS = 120.0
SHARES = {"camera": 0, "latents": 1, "tuning": 2}  # order of the phases in a progress bar


@dataclass(frozen=True, eq=False)
class Inverter:
    """What all pictures of a call share."""

    generator: Generator
    network: str
    network_content: str
    settings: InversionSettings
    perceptual: tuple[Perceptual, str]
    outdir: Path
    optimise_pose: bool
    photos: PhotoOptions

    def dest(self, name: str) -> Path:
        """NAME.pkl.

        Raises:
            UserError: if that is the network itself.
        """
        return checked_dest(self.outdir / f"{name}.pkl", self.network)

    def run(self, subjects: list[Subject], name: str, on_step: OnStep) -> Inversion:
        """Invert the pictures of one person, and write the three files."""
        dest, origins = self.dest(name), [one.origin for one in subjects]
        settings = settings_for(self.settings, origins)
        inversion = invert(
            self.generator,
            [one.picture for one in subjects],
            [one.label for one in subjects],
            method=settings.method,
            optimise_pose=self.optimise_pose or "guessed" in origins,
            seconds=settings.seconds,
            perceptual=self.perceptual,
            settings=settings,
            on_step=on_step,
        )
        given = [one.label if one.origin == "given" else None for one in subjects]
        sources = [one.source for one in subjects]
        told = {"origins": origins, "sources": sources, "network": self.network}
        made_by = self.made_by(origins, [one.content for one in subjects], given)
        write_identity(inversion, dest, sources, told | made_by)
        return inversion

    def made_by(
        self, origins: Sequence[Origin], contents: Sequence[str], given: Sequence[Tensor | None]
    ) -> dict[str, Any]:
        """What decides how a result comes out, as plain values, and not where its files lie;
        `contents` are the photos', `given` labels (25,).
        """
        is_asked = bool({"estimated", "guessed"} & set(origins))
        return {
            "contents": list(contents),
            "network_content": self.network_content,
            "compared": self.perceptual[1],
            "settings": plain_settings(settings_for(self.settings, origins)),
            "optimise_pose": self.optimise_pose,
            "given_labels": [None if c is None else c.tolist() for c in given],
            "estimator": self.photos.estimator if is_asked else None,
            "face": self.photos.face if is_asked else None,
        }


def line_of(name: str, inversion: Inversion) -> str:
    """One line about a finished picture."""
    pose = inversion.poses[0]
    sure = f" (sure {pose['sure']:.2f})" if "sure" in pose else ""
    return (
        f"{name}: {inversion.losses['psnr']:.1f} dB, yaw {pose['yaw']:.1f}, pitch"
        f" {pose['pitch']:.1f}{sure}, {inversion.seconds:.0f} s"
    )


@contextlib.contextmanager
def told_bar(name: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """A progress bar, full at the end; it is told how much is done, and a text to show."""
    with counter(name, total, unit) as bar:

        def show(done: int, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield show
        bar.update(total - bar.n)


def with_bar(inverter: Inverter, subjects: list[Subject], name: str, where: str = "") -> None:
    """Invert with a progress bar, and print a line that begins with `where`."""
    total = 100 * len(SHARES)
    with told_bar(where + name, total, "%") as show:

        def tell(phase: str, done: float, loss: float) -> None:
            show(int(100 * (SHARES[phase] + done)), f"{phase}, loss {loss:.3f}")

        inversion = inverter.run(subjects, name, tell)
    click.echo(where + line_of(name, inversion))


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


def invert_data(inverter: Inverter, data: Data) -> None:
    """Invert each picture of a data set or of a folder of photos that has no report yet.

    Raises:
        UserError: if none of them could be inverted.
    """
    resolution, cameras = inverter.generator.config.resolution, cameras_of(inverter.generator)
    count, options = len(data.pictures), inverter.photos
    for name, _ in data.pictures:
        inverter.dest(name)
    given = data.given_labels(options)
    done, failed = 0, []
    for index, (name, file) in enumerate(data.pictures):
        where, source = f"[{index + 1}/{count}] ", data.files.where(file)

        def made_by(
            origins: Sequence[Origin], file: str = file, label: Tensor | None = given[index]
        ) -> dict[str, Any]:
            return inverter.made_by(origins, [content_of(data.files.read(file))], [label])

        if is_done(inverter.dest(name), made_by):
            done += 1
            click.echo(f"{where}{name}: there already")
            continue
        try:
            if data.dataset:
                subjects = data_set_subjects(data.dataset, index, name)
            else:
                photo = data.files.read(file)
                subjects = subjects_of(name, file, photo, source, options, cameras, resolution)
        except UserError as error:
            failed.append(str(error))
            click.echo(f"{where}{name}: {error}", err=True)
            continue
        with_bar(inverter, subjects[:1], name, where)
        done += 1
    if not done:
        raise UserError(f"none of {count} pictures could be inverted; the first: {failed[0]}")
    if failed:
        click.echo(f"{len(failed)} of {count} pictures were left out", err=True)


def write_directions(generator: Generator, scores: Path, dest: Path) -> None:
    """Write the network with directions found from a table of the scores of seeds.

    Raises:
        UserError: if it is none, they are too few, or all the same.
    """
    seeds, columns = read_scores(read_file(scores), str(scores))
    w = map_latents(generator, seed_latents(generator, seeds))[:, 0]
    found = supervised_directions(generator, w, columns)
    generator.directions = {**generator.directions, **found}
    export(generator, dest)
    click.echo(f"Wrote {dest} with the directions {', '.join(found)}")


def write_encoder(generator: Generator, steps: int, dest: Path) -> None:
    """Train an encoder, and write the network that holds it."""
    state = dest.with_suffix(".state")
    with told_bar("encoder", steps, "step") as show:

        def tell(step: int, losses: dict[str, float]) -> None:
            show(step, ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))

        train_encoder(generator, state, EncoderSettings(steps=steps), tell)
    export(generator, dest)
    state.unlink()
    click.echo(f"Wrote {dest} with an encoder")


@program(
    Photos="network data estimator face masks same_person outdir",
    Cameras="label poses optimise_pose optimise_focal",
    Method="method seconds steps lpips_weights",
    Directions_and_encoder="scores train_encoder dest",
    Machine="device",
)
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path))
@network_option
@click.option("--data", metavar="ZIP|DIR|URL", help="A data set, or a folder of photos; resumable.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    help="w: one latent; w+: one per layer; pti: w+, then the network's weights are tuned;"
    " encoder: at once, where the file holds one; encoder+pti; auto: the best in --seconds.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0.0),
    help=f"At most so long for a person.  [default: {DEFAULT_SECONDS:.0f}, unless --steps]",
)
@click.option(
    "--steps",
    type=(click.IntRange(1), click.IntRange(1)),
    metavar="N M",
    help="At most N steps for latents and M for weights; without --seconds all of them.",
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
    help="What finds faces: mediapipe, or MODULE:FUNCTION.",
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
@click.option(
    "--train-encoder",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Instead: train an encoder of the network's own samples and write --dest; resumable.",
)
@click.option(
    "--dest", type=click.Path(path_type=Path), help="Network that the two lines above write."
)
@outdir_option
@device_option
def main(photos: tuple[Path, ...], network: str, **options: Any) -> None:
    """Find the identity in photos: NAME.pkl, a network that shows it under --latents NAME, NAME.png
    and NAME.json.

    Portraits are found, cut out and posed as by `dataset_tool.py faces`; with a label or
    --optimise-pose photos are taken to be cut out already.
    """
    check_usage(photos, options)
    use_full_fp32()
    if options["dest"] is not None:
        dest = checked_dest(options["dest"], network)
        generator = open_generator(network, options["device"])
        if options["scores"] is not None:
            write_directions(generator, options["scores"], dest)
        else:
            write_encoder(generator, options["train_encoder"], dest)
        return
    photo_options = PhotoOptions(
        labels=camera_labels(options["label"], options["poses"]),
        is_cut_out=options["optimise_pose"],
        estimator=options["estimator"],
        face=options["face"],
    )
    data = open_data(options["data"]) if options["data"] else None
    if data and data.dataset and (photo_options.labels or options["face"]):
        raise click.UsageError(
            f"{data.files.path} has labels of its own; leave others and --face out"
        )
    generator = open_generator(network, options["device"])
    if not generator.cameras and not photo_options.labels and not data:
        raise UserError(
            f"{network} knows no cameras, so that none can be found; give --label or --poses"
        )
    settings = settings_of(options)
    chosen_method(generator, settings)
    perceptual = choose_perceptual(options["lpips_weights"], options["device"])
    click.echo(perceptual[1], err=True)
    inverter = Inverter(
        generator,
        network,
        weights_content(generator),
        settings,
        perceptual,
        make_dir(options["outdir"]),
        options["optimise_pose"],
        photo_options,
    )
    with estimators_closed():
        if data:
            invert_data(inverter, data)
        else:
            found = opened(named_photos(photos), options["masks"], photo_options, generator)
            invert_photos(inverter, found, options["same_person"])


def check_usage(photos: tuple[Path, ...], options: dict[str, Any]) -> None:
    """Refuse options that would be dropped, before anything is opened.

    Raises:
        click.UsageError: naming them. UserError: for a name that could not be opened.
    """
    source = click.get_current_context().get_parameter_source
    given = {name for name in options if source(name) is ParameterSource.COMMANDLINE}
    if made := sorted(given & {"scores", "train_encoder"}):
        if photos or "dest" not in given or given - {made[0], "dest", "device"}:
            name = made[0].replace("_", "-")
            raise click.UsageError(f"--{name} goes with --network, --dest and --device alone")
        return
    if bool(photos) == bool(options["data"]):
        raise click.UsageError("name photos or --data, one of them")
    is_cut_out = bool(given & {"label", "poses", "optimise_pose"})
    is_fixed = bool(given & {"label", "poses"}) and not options["optimise_pose"]
    for is_wrong, message in (
        ("dest" in given, "--dest goes with --scores or --train-encoder"),
        ({"label", "poses"} <= given, "--label and --poses both tell the camera; leave one out"),
        (options["data"] and "masks" in given, "--mask goes with named photos, not with --data"),
        (
            options["data"] and "same_person" in given,
            "--same-person goes with named photos, not with --data",
        ),
        ("face" in given and is_cut_out, "--face goes with photos in which faces are looked for"),
        (options["optimise_focal"] and is_fixed, "--optimise-focal goes with --optimise-pose"),
    ):
        if is_wrong:
            raise click.UsageError(message)
    if options["same_person"] is not None:
        check_name(options["same_person"], "--same-person")


def camera_labels(label: str | None, poses: Path | None) -> Mapping[str, Tensor | None]:
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
    """The subjects of each photo; several in one get names of their own."""
    cameras, resolution = cameras_of(generator), generator.config.resolution
    taken = [name for name, _ in photos]
    for name, path, mask in each_photo(photos, masks):
        data, file = read_file(path), path.as_posix()
        subjects = subjects_of(name, file, data, str(path), options, cameras, resolution, mask)
        if len(subjects) > 1:
            stem = name[: LONGEST_NAME - len(f"-{len(subjects)}")]
            names = unique_names((f"{stem}-{i + 1}" for i in range(len(subjects))), taken)
            taken += names
            subjects = [
                dataclasses.replace(subject, name=one)
                for subject, one in zip(subjects, names, strict=True)
            ]
        yield subjects


if __name__ == "__main__":
    run_cli(main)
