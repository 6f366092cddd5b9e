"""Generators on the Hugging Face Hub, or in folders of the same form. Needs the extra `hub`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from dnnlib.console import UserError
from dnnlib.files import local_file
from media.pictures.grids import save_png
from open_eg3d.exporting import weights_of
from training.checkpoints.checkpoint import build_generator_as, load_weights
from training.checkpoints.weights_folder import FILES, read_weights_folder, write_weights_folder
from training.config.settings import ModelConfig
from training.networks.generator import Generator

try:
    from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
except ImportError as error:
    raise UserError(
        "the Hugging Face Hub is reached through the package huggingface_hub; run: pip install"
        " 'open-eg3d[hub]'"
    ) from error

from open_eg3d.model_card import PICTURE, Origin, model_card, origin_of, sample_picture


class PretrainedGenerator(
    Generator, ModelHubMixin, library_name="open-eg3d", tags=["eg3d", "3d", "gan"]
):
    """A `Generator` with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    `save_pretrained(folder)` writes what `export.py --format safetensors` writes, a model card and
    its picture; `push_to_hub(repo_id)` uploads the same files. `model_card_kwargs` are those of
    `open_eg3d.model_card.model_card`: say the licence of the weights with {"license": ...}.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.origin = Origin()

    @classmethod
    def from_checkpoint(cls, path_or_url: str | os.PathLike[str]) -> Self:
        """From any file that `load_generator` reads: eval mode, on the CPU, parameters frozen.

        Raises:
            UserError: if the file cannot be read or holds no generator.
        """
        path = local_file(path_or_url)
        generator = build_generator_as(cls, load_weights(path))
        generator.origin = origin_of(path)
        return generator

    @classmethod
    def from_pretrained(  # type: ignore[override]  # there are no settings to give: those of the file belong to its weights
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """From a folder, or from a repository on the Hub: eval mode, on the CPU, parameters frozen.

        The mixin's own way would build from config.json what it says, without checks.

        Args:
            pretrained_model_name_or_path: Folder, or `user/name` on the Hub. The others are those
                of `snapshot_download`.

        Raises:
            UserError: if it cannot be fetched or read.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options: dict[str, Any] = {
                "force_download": force_download,
                "token": token,
                "cache_dir": cache_dir,
            }
            options |= {
                "local_files_only": local_files_only,
                "revision": revision,
                "allow_patterns": list(FILES),
            }
            folder = _fetch(str(pretrained_model_name_or_path), options)
        return build_generator_as(cls, read_weights_folder(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by `save_pretrained`: weights, settings, cameras, and the card's picture."""
        write_weights_folder(save_directory, weights_of(self))
        save_png(save_directory / PICTURE, sample_picture(self))

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **more: Any
    ) -> str:
        """Upload what `save_pretrained` writes to a repository `user/name`; returns the address of
        the commit. `more` are the keywords of `ModelHubMixin.push_to_hub`: private, token, ...
        """
        about = {"name": repo_id, **(model_card_kwargs or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=about, **more)

    def generate_model_card(self, *_: Any, **about: Any) -> ModelCard:
        """Called by `save_pretrained`, with `model_card_kwargs`."""
        return model_card(self, self._hub_mixin_info.model_card_data, self.origin, **about)


def _fetch(name: str, options: dict[str, Any]) -> Path:
    """Folder with the files of a repository."""
    try:
        return Path(snapshot_download(name, **options))
    except HFValidationError as error:
        raise UserError(
            f"{name} is neither a folder here nor a name of the form user/model"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch {name} from the Hub: {reason}; check the name and the connection"
        ) from error
