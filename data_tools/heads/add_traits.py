"""Give a data set of built-in heads that was made without them the true traits of its heads."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from data_tools.heads.dataset import as_table, head_traits, random_labels
from data_tools.sinks import check_dest, copy_with_labels, image_name
from dnnlib.console import UserError, progress
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset
from training.data.files import shown


def add_traits(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    seed: int,
    views_per_identity: int,
    *,
    overwrite: bool = False,
) -> int:
    """Copy a data set that `generate_heads` made, with its heads' traits; nothing is rendered.

    Returns:
        The number of pictures.

    Raises:
        UserError: if the cameras show that the data set was made with another seed or number of
            views; else as `data_tools.mirror.mirror`.
    """
    check_dest(Path(dest), overwrite, Path(source))
    dataset = ImageDataset(source, background=PLAIN_BACKGROUND)
    traits: dict[str, dict[str, float]] = {}
    for index, name in enumerate(progress(dataset.file_names, "Traits", unit="img")):
        identity, view = divmod(index, views_per_identity)
        labels = random_labels(seed, identity, views_per_identity)
        if name != image_name(index) or not torch.equal(labels[view], dataset.labels[index]):
            raise UserError(
                f"{source}: {shown(name)} has another camera than head {identity} of seed {seed}"
                f" with {views_per_identity} views; give the --seed and --views-per-identity that"
                " it was made with"
            )
        traits[name] = traits[image_name(index - 1)] if view else head_traits(seed, identity)
    cameras = dataset.labels.double().numpy()
    copy_with_labels(dataset, Path(dest), cameras, as_table(traits), overwrite=overwrite)
    return len(dataset)
