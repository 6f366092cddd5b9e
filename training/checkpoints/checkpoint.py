"""Our checkpoint: one file of tensors and plain values. Weights also come from released snapshots,
recognised by their first bytes.

The file is what `torch.save` writes for a dict with the fields of `Checkpoint` plus `format`; it
opens with `torch.load(path, weights_only=True)` and holds no code. Its name does not matter.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from dnnlib.files import atomic_write, local_file
from training.checkpoints.file_checks import check_model, is_plain
from training.checkpoints.identities import check_identities, check_names
from training.checkpoints.released.interop import Weights, read_released_snapshot
from training.checkpoints.torch_archive import read_torch_archive
from training.checkpoints.weights_folder import is_weights_folder, read_weights_folder
from training.config.settings import Config, ModelConfig, from_dict, to_dict
from training.config.sizes import rendering_resolution
from training.networks.discriminator import Discriminator, make_discriminator
from training.networks.generator import Generator
from training.networks.shapes import shapes_of

Network = TypeVar("Network", bound=nn.Module)
AnyGenerator = TypeVar("AnyGenerator", bound=Generator)

FORMAT_NAME = "open-eg3d checkpoint"
FORMAT_VERSION = 2  # 1 had other names of settings, and an empty section more
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
NAMES_SHOWN = 4
# fixed by the architecture; released files also keep copies that nothing uses
BUILT_IN_BUFFER = "resample_filter"
# sections that only files with some have
OCCASIONAL = ("latents", "directions", "encoder", "poses")


@dataclass
class Checkpoint:
    """All that a run needs to go on exactly where it stood. Values are tensors, numbers, texts,
    None, lists and dicts of these. `latents` and `directions` are those of
    `training.checkpoints.identities`, `encoder` the weights of `training.inversion.encoder`,
    `poses` the state of `training.gan.pose_repair`; files without them hold none.
    """

    config: Config
    progress: dict[str, Any] = field(default_factory=dict)
    G: dict[str, Tensor] | None = None
    D: dict[str, Tensor] | None = None
    G_ema: dict[str, Tensor] | None = None
    optimizers: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, Any] | None = None
    latents: dict[str, Any] = field(default_factory=dict)
    directions: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)
    poses: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> ModelConfig:
        """The model's settings, with the rendering resolution that the fade has reached."""
        model, images = self.config.model, self.progress.get("images")
        if type(images) is not int:
            return model
        resolution = rendering_resolution(self.config, images)
        return dataclasses.replace(
            model, rendering=dataclasses.replace(model.rendering, resolution=resolution)
        )


# --------------------------------------------------------------------------------------------------
# Writing


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`: whole and synced, or not at all, in which case an older file of
    that name stays.

    Raises:
        UserError: if the disk is full or the place cannot be written, or for names of latents and
            directions that no command could open.
        TypeError: if `checkpoint` holds anything but tensors and plain values.
    """
    check_names(checkpoint.latents, checkpoint.directions)
    content: dict[str, Any] = {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "config": to_dict(checkpoint.config),
    }
    for item in dataclasses.fields(checkpoint):
        value = getattr(checkpoint, item.name)
        if item.name != "config" and (value or item.name not in OCCASIONAL):
            content[item.name] = _plain(value, item.name)
    with atomic_write(path) as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(content, recorder)  # type: ignore[arg-type]
        except RuntimeError:
            # torch hides the reason, for instance a full disk, behind one of its own
            if recorder.error is not None:
                raise recorder.error from None
            raise


class _ErrorRecorder:
    """Passes writes on to a file and remembers why one failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _plain(value: Any, where: str) -> Any:
    """`value` with its tensors detached, on the CPU and with memory of their own, one place a
    number.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (
            tensor.clone()
            if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
            else tensor
        )
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise TypeError(
        f"{where}: a checkpoint takes tensors and plain values only, not {type(value).__name__}"
    )


# --------------------------------------------------------------------------------------------------
# Reading


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of ours; all tensors arrive on the CPU. Nothing in the file is executed.

    Raises:
        UserError: if the file is missing, cut off, damaged, newer than this program, or not one of
            ours.
    """
    path = Path(path)
    kind = _file_kind(path)
    if kind == "pickle":
        raise UserError(
            f"{path} is not a checkpoint of this program; if it is a released snapshot, start a new"
            " run from it with --init-from"
        )
    if kind == "other":
        raise UserError(
            f"{path} is not a checkpoint: it is neither a file of this program nor a released"
            " snapshot; of a folder of weights name the folder"
        )
    return _parse(read_torch_archive(path), path)


def load_weights(path_or_url: str | os.PathLike[str]) -> Weights:
    """Networks from a checkpoint of ours, a folder of weights or a released snapshot. Runs nothing
    in any of them.

    Files are told apart by their first bytes.

    Raises:
        UserError: as `load_checkpoint`, `read_weights_folder` and `read_released_snapshot`; also if
            a download fails.
    """
    path = local_file(path_or_url)
    if is_weights_folder(path):
        return read_weights_folder(path)
    if _file_kind(path) == "pickle":
        weights = read_released_snapshot(path)
        check_model(weights.config, str(path))
        return weights
    checkpoint = load_checkpoint(path)
    return Weights(
        checkpoint.model,
        checkpoint.G,
        checkpoint.D,
        checkpoint.G_ema,
        checkpoint.cameras,
        "ours",
        checkpoint.latents,
        checkpoint.directions,
        checkpoint.encoder,
    )


def is_released(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a pickle, as released snapshots are, and not a checkpoint of ours.

    Raises:
        UserError: if it cannot be read.
    """
    return _file_kind(Path(path)) == "pickle"


def _file_kind(path: Path) -> str:
    """`zip`, `pickle` or `other`, by the first bytes."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a checkpoint file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or a pipe, not a file; copy the checkpoint to a file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(ZIP_MAGIC))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the name") from error
    if not start:
        raise UserError(f"{path} is empty; take an earlier checkpoint or fetch the file again")
    return "zip" if start == ZIP_MAGIC else "pickle" if start.startswith(PICKLE_MAGIC) else "other"


def _parse(content: Any, path: Path) -> Checkpoint:
    """`Checkpoint` from the loaded dict."""
    mark = content.get("format") if isinstance(content, dict) else None
    if (
        not isinstance(mark, dict)
        or not is_plain(mark)
        or mark.get("name") != FORMAT_NAME
        or type(mark.get("version")) is not int
    ):
        raise UserError(f"{path} is a torch file of another program, not a checkpoint of this one")
    if mark["version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} has format {mark['version']}, this program reads up to {FORMAT_VERSION};"
            " update the program"
        )
    if not is_plain(content.get("config")):
        raise UserError(
            f"{path}: section config has the wrong form; it was not written by this program or is"
            " damaged"
        )
    values: dict[str, Any] = {"config": from_dict(Config, content.get("config"), f"{path}: config")}
    check_model(values["config"].model, f"{path}: config")
    for item in dataclasses.fields(Checkpoint):
        if item.name != "config":
            if item.name not in content and item.name in OCCASIONAL:
                continue
            if item.name not in content:
                raise UserError(
                    f"{path} lacks {item.name}; it was not written by this program or is damaged"
                )
            values[item.name] = _check_section(item.name, content[item.name], path)
    return Checkpoint(**values)


def _check_section(name: str, value: Any, path: Path) -> Any:
    """One section, whose outer form must be right: the networks are tensors by name, the others
    dicts.
    """
    optional = name in ("G", "D", "G_ema", "cameras")
    network = name in ("G", "D", "G_ema", "encoder")
    is_right = (optional and value is None) or (
        isinstance(value, dict) and all(isinstance(key, str) for key in value)
    )
    if is_right and network and value is not None:
        is_right = all(isinstance(tensor, Tensor) for tensor in value.values())
    if not is_right or not is_plain(value):
        raise UserError(
            f"{path}: section {name} has the wrong form; it was not written by this program or is"
            " damaged"
        )
    return value


# --------------------------------------------------------------------------------------------------
# Into networks


def load_state(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Copy `state` into `module`: every name and shape must agree, except for the resampling
    filters, which are built in.

    Raises:
        UserError: with one list of the missing, unexpected and differing names. The module is
            unchanged then.
    """
    check_state(module, state, what)
    with torch.no_grad():
        for name, value in _learned(module.state_dict()).items():
            value.copy_(state[name])


def check_state(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Raise the error of `load_state` if `state` does not fit `module`, whose tensors may have
    shapes only (device `meta`).
    """
    own, given = _learned(module.state_dict()), _learned(state)
    problems = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "differing": [
            f"{name} ({_describe_shape(given[name])} in the file, {_describe_shape(own[name])}"
            " here)"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
    }
    found = "; ".join(
        f"{len(names)} {kind}: {_shorten(names)}" for kind, names in problems.items() if names
    )
    if found:
        raise UserError(f"{what}: the weights do not fit the network: {found}")


def _learned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the filters that the architecture fixes."""
    return {
        name: value for name, value in state.items() if name.rpartition(".")[2] != BUILT_IN_BUFFER
    }


def _describe_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _shorten(names: list[str]) -> str:
    shown = ", ".join(name[:150] for name in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def build_generator(weights: Weights) -> Generator:
    """The averaged generator of a file (or the plain one if there is no average): eval mode, CPU,
    frozen parameters.

    Raises:
        UserError: if there is no generator, or its weights do not fit its settings.
    """
    return build_generator_as(Generator, weights)


def build_generator_as(
    kind: Callable[[ModelConfig], AnyGenerator], weights: Weights
) -> AnyGenerator:
    """`build_generator` for a subclass that, as `Generator`, is made from its settings alone."""
    generator = _build(
        kind, weights.config, weights.G if weights.G_ema is None else weights.G_ema, "generator"
    )
    check_identities(generator, weights.latents, weights.directions)
    generator.cameras = weights.cameras
    generator.latents, generator.directions = weights.latents, weights.directions
    generator.encoder = weights.encoder
    return generator


def build_discriminator(weights: Weights) -> Discriminator:
    """The discriminator of a file: eval mode, CPU, frozen parameters.

    Raises:
        UserError: if there is none, or its weights do not fit its settings.
    """
    return _build(make_discriminator, weights.config, weights.D, "discriminator")


def _build(
    network: Callable[[ModelConfig], Network],
    config: ModelConfig,
    state: dict[str, Tensor] | None,
    what: str,
) -> Network:
    """A network with its weights. Shapes are compared before memory is asked for, as settings in a
    file may say anything.
    """
    if state is None:
        raise UserError(f"the file holds no {what}")
    check_state(shapes_of(network, config, f"{what}: the file's settings"), state, what)
    # loading a file draws nothing from the caller's random numbers
    with torch.random.fork_rng(devices=[]):
        module = network(config)
    load_state(module, state, what)
    return module.eval().requires_grad_(False)
