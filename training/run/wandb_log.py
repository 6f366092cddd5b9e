"""A run's curves and pictures in Weights & Biases, beside those of TensorBoard."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from training.config.settings import Config, to_dict

PROJECT = "open-eg3d"
ID_FILE = "wandb_id.txt"
STEP = "images"  # the horizontal axis, as in TensorBoard


class WandbLog:
    """A run of wandb's; a resumed one goes on in it. Its id is kept in the run folder, whose name
    is no other's in one `--outdir` only. Where and whether it sends anything is up to wandb's own
    variables: WANDB_MODE=offline writes to the folder only.
    """

    def __init__(self, path: Path, config: Config, warn: Callable[[str], None]) -> None:
        """Begin.

        Raises:
            UserError: if the package is missing, or wandb refuses.
        """
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError(
                "--log wandb needs the package wandb; install it with: pip install"
                " 'open-eg3d[wandb]'"
            ) from error
        self.warn, self._image, self._error = warn, wandb.Image, wandb.Error
        try:
            self._run = wandb.init(
                project=PROJECT,
                name=path.name,
                id=_kept_id(path),
                resume="allow",
                dir=str(path),
                config=to_dict(config),
                settings=wandb.Settings(silent=True),
            )
            self._run.define_metric("*", step_metric=STEP)
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"wandb cannot begin: {error}; log in, set WANDB_MODE=offline, or leave it out of"
                " --log"
            ) from error

    def add_scalar(self, name: str, value: float, images: int) -> bool:
        """Show a number; whether it was taken."""
        return self._add({name: value, STEP: images})

    def add_image(self, name: str, picture: Any, images: int, dataformats: str = "HWC") -> bool:
        """Show a picture (H, W, 3), uint8; whether it was taken."""
        assert dataformats == "HWC"
        return self._add({name: self._image(picture), STEP: images})

    def flush(self) -> bool:
        """Nothing: wandb's own process writes."""
        return True

    def close(self) -> None:
        """End the run, once all is written or sent."""
        self._try(self._run.finish)

    def _add(self, values: dict[str, Any]) -> bool:
        return self._try(lambda: self._run.log(values))

    def _try(self, action: Callable[[], None]) -> bool:
        """What goes wrong with curves costs a line, not the training."""
        try:
            action()
        except (self._error, OSError) as error:
            self.warn(f"wandb cannot write: {error}")
            return False
        return True


def _kept_id(path: Path) -> str:
    kept = path / ID_FILE
    if not kept.exists():
        with atomic_write(kept) as file:
            file.write(secrets.token_hex(8).encode())
    return kept.read_text(encoding="ascii")
