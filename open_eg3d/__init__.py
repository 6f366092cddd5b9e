"""The stable import for other programs: networks from files, cameras, pictures, meshes, videos,
metrics and training. docs/python.md shows how it is used.

Names are imported when they are first used, so that `import open_eg3d` is quick and loads nothing
that a program does not need.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnnlib.console import UserError
    from media.meshes.files import save_mesh
    from media.splats.files import save_splats
    from media.splats.splats import Splats
    from metrics.fid import frechet_distance
    from metrics.inception_score import inception_score
    from metrics.kid import kernel_distance
    from metrics.options import MetricOptions, MetricResult
    from metrics.precision_recall import precision_recall
    from open_eg3d.cameras import (
        CameraPose,
        ColmapCamera,
        PyTorch3DCamera,
        from_colmap,
        from_opengl,
        from_pytorch3d,
        label_pose,
        orbit_label,
        to_colmap,
        to_opengl,
        to_pytorch3d,
        view_label,
    )
    from open_eg3d.exporting import export
    from open_eg3d.files import SHIPPED_MODEL, load_discriminator, load_generator
    from open_eg3d.inverting import invert
    from open_eg3d.measuring import SamplingOptions, measure
    from open_eg3d.runs import new_config, train
    from open_eg3d.views import (
        Views,
        camera_path,
        map_latents,
        mesh,
        render,
        seed_latents,
        splats,
        video,
    )
    from training.cameras import CameraSummary, cameras_of
    from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from training.config.settings import Config
    from training.inversion.inversion import Inversion, InversionSettings
    from training.networks.discriminator import Discriminator
    from training.networks.generator import Generator, GeneratorOutput

__version__ = "0.1.0"

_HOMES = {
    "dnnlib.console": "UserError",
    "media.meshes.files": "save_mesh",
    "media.splats.files": "save_splats",
    "media.splats.splats": "Splats",
    "metrics.options": "MetricOptions MetricResult",
    "metrics.fid": "frechet_distance",
    "metrics.inception_score": "inception_score",
    "metrics.kid": "kernel_distance",
    "metrics.precision_recall": "precision_recall",
    "open_eg3d.cameras": (
        "CameraPose ColmapCamera PyTorch3DCamera from_colmap from_opengl from_pytorch3d label_pose"
        " orbit_label to_colmap to_opengl to_pytorch3d view_label"
    ),
    "open_eg3d.exporting": "export",
    "open_eg3d.files": "SHIPPED_MODEL load_discriminator load_generator",
    "open_eg3d.inverting": "invert",
    "open_eg3d.measuring": "SamplingOptions measure",
    "open_eg3d.runs": "new_config train",
    "open_eg3d.views": "Views camera_path map_latents mesh render seed_latents splats video",
    "training.checkpoints.checkpoint": "Checkpoint load_checkpoint save_checkpoint",
    "training.config.settings": "Config",
    "training.cameras": "CameraSummary cameras_of",
    "training.inversion.inversion": "Inversion InversionSettings",
    "training.networks.discriminator": "Discriminator",
    "training.networks.generator": "Generator GeneratorOutput",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "SHIPPED_MODEL",
    "CameraPose",
    "CameraSummary",
    "Checkpoint",
    "ColmapCamera",
    "Config",
    "Discriminator",
    "Generator",
    "GeneratorOutput",
    "Inversion",
    "InversionSettings",
    "MetricOptions",
    "MetricResult",
    "PyTorch3DCamera",
    "SamplingOptions",
    "Splats",
    "UserError",
    "Views",
    "__version__",
    "camera_path",
    "cameras_of",
    "export",
    "frechet_distance",
    "from_colmap",
    "from_opengl",
    "from_pytorch3d",
    "inception_score",
    "invert",
    "kernel_distance",
    "label_pose",
    "load_checkpoint",
    "load_discriminator",
    "load_generator",
    "map_latents",
    "measure",
    "mesh",
    "new_config",
    "orbit_label",
    "precision_recall",
    "render",
    "save_checkpoint",
    "save_mesh",
    "save_splats",
    "seed_latents",
    "splats",
    "to_colmap",
    "to_opengl",
    "to_pytorch3d",
    "train",
    "video",
    "view_label",
]


def check_own(name: str, file: str) -> None:
    """Refuse to work where Python finds a package or module of somebody else under a name of ours.

    Raises:
        ImportError: naming it, where it is, and where ours is.
    """
    own = Path(__file__).resolve().parents[1] / file
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module made by hand
        spec = None
    found = spec.origin if spec is not None else None
    if found is None or Path(found).resolve() != own:
        raise ImportError(
            f"open_eg3d needs its own {name} ({own}), but Python finds {found or 'none'} first;"
            " rename that, or take its folder off sys.path"
        )


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'open_eg3d' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


for _room in ("dnnlib", "torch_utils", "training", "metrics", "media", "data_tools", "cli"):
    check_own(_room, f"{_room}/__init__.py")
