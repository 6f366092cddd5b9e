"""The names and signatures that other programs rely on, and what importing them costs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

import open_eg3d
from training.networks.generator import Generator

ROOT = Path(__file__).parents[1]

# A change here breaks other people's programs: it belongs into the change log, and into a new
# version.
SIGNATURES = {
    "camera_path": (
        "(generator: Generator, kind: str | None = None, frames: int = 120, *, "
        "yaw_degrees: float | None = None, pitch_degrees: float | None = None) -> "
        "Tensor"
    ),
    "cameras_of": "(generator: HasCameras) -> CameraSummary",
    "export": (
        "(generator: Generator, dest: str | os.PathLike[str], *, seeds: Sequence[int] ="
        " range(0, 8), truncation_psi: float = 1.0) -> list[Path]"
    ),
    "frechet_distance": (
        "(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float"
    ),
    "from_colmap": ("(qvec: Any, tvec: Any, params: Any, resolution: int) -> Tensor"),
    "from_opengl": "(cam2world: Any, intrinsics: Any) -> Tensor",
    "from_pytorch3d": (
        "(R: Any, T: Any, focal_length: Any, principal_point: Any = (0.0, 0.0)) -> Tensor"
    ),
    "inception_score": (
        "(logits: Tensor, splits: int = 10, seed: int = 2020) -> tuple[float, float]"
    ),
    "invert": (
        "(generator: Generator, picture: Picture | Sequence[Picture], camera: Tensor |"
        " Sequence[Tensor | None] | None = None, *, method: Method = auto, mask: Tensor | None ="
        " None, optimise_pose: bool = False, seconds: float | None = None, lpips_weights:"
        " Sequence[str | Path] = (), perceptual: tuple[Perceptual, str] | None = None,"
        " settings: InversionSettings | None = None, on_step: OnStep | None = None)"
        " -> Inversion"
    ),
    "kernel_distance": (
        "(fakes: Tensor, reals: Tensor, subsets: int = 100, size: int | None = None, "
        "seed: int = 2020, team: WorkerGroup = WorkerGroup(rank=0, size=1, "
        "device=device(type=cpu))) -> tuple[float, float]"
    ),
    "label_pose": ("(c: Tensor, center: Point = (0.0, 0.0, 0.0)) -> CameraPose"),
    "load_checkpoint": "(path: str | os.PathLike[str]) -> Checkpoint",
    "load_discriminator": (
        "(path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False) -> Discriminator"
    ),
    "load_generator": (
        "(path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False) -> Generator"
    ),
    "map_latents": (
        "(generator: Generator, z: Tensor | NDArray[Any], *, truncation_psi: float = "
        "1.0, truncation_cutoff: int | None = None, conditioning: Tensor | None = None)"
        " -> Tensor"
    ),
    "measure": (
        "(generator: Generator, metrics: Sequence[str], data: str | os.PathLike[str] | "
        "None = None, *, mirror: bool = False, sampling: SamplingOptions | None = None,"
        " options: MetricOptions | None = None) -> list[MetricResult]"
    ),
    "mesh": (
        "(generator: Generator, ws: Tensor, *, resolution: int = 256, level: float | "
        "None = None, texture: int | None = None, max_faces: int | None = None) -> "
        "trimesh.Trimesh"
    ),
    "new_config": (
        "(data: str | os.PathLike[str], preset: PresetName = auto, *, sizes: Sizes | "
        "None = None, init_from: str | None = None, device: DeviceName = auto, "
        "settings: Mapping[str, Any] | None = None) -> Config"
    ),
    "orbit_label": (
        "(yaw_degrees: Angles, pitch_degrees: Angles = 0.0, *, radius: float = 2.7, "
        "pivot: Point = (0.0, 0.0, 0.0), center: Point = (0.0, 0.0, 0.0), focal: float "
        "= 4.2647) -> Tensor"
    ),
    "precision_recall": (
        "(fakes: Tensor, reals: Tensor, neighbours: int = 3, team: WorkerGroup = "
        "WorkerGroup(rank=0, size=1, device=device(type=cpu))) -> tuple[float, float]"
    ),
    "render": (
        "(generator: Generator, ws: Tensor, labels: Tensor, *, "
        "neural_rendering_resolution: int | None = None, normals: bool = False, batch: "
        "int = 4) -> Views"
    ),
    "save_checkpoint": ("(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None"),
    "save_mesh": ("(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None"),
    "save_splats": (
        "(path: str | os.PathLike[str], splats: Splats, kind: str | None = None) -> None"
    ),
    "seed_latents": ("(generator: Generator, seeds: int | Sequence[int]) -> Tensor"),
    "splats": ("(generator: Generator, ws: Tensor, cameras: Tensor | None = None) -> Splats"),
    "to_colmap": "(c: Tensor, resolution: int) -> ColmapCamera",
    "to_opengl": "(c: Tensor) -> Tensor",
    "to_pytorch3d": "(c: Tensor) -> PyTorch3DCamera",
    "train": (
        "(config: Config, outdir: str | os.PathLike[str] = training-runs, *, minutes: "
        "float | None = None, device: DeviceName = auto, processes: int | None = None) "
        "-> Path"
    ),
    "video": (
        "(path: str | os.PathLike[str], generator: Generator, ws: Tensor, labels: "
        "Tensor | None = None, *, interpolate: bool = False, columns: int = 1, panels: "
        "Sequence[str] = (image,), fps: float = 30.0, size: int | None = None, "
        "neural_rendering_resolution: int | None = None) -> Path"
    ),
    "view_label": (
        "(generator: Generator, yaw_degrees: Angles | None = None, pitch_degrees: "
        "Angles | None = None) -> Tensor"
    ),
    "Generator.mapping": (
        "(self, z: Tensor, c: Tensor, truncation_psi: float = 1.0, truncation_cutoff: "
        "int | None = None, update_w_avg: bool = False) -> Tensor"
    ),
    "Generator.planes": ("(self, ws: Tensor, noise_mode: NoiseMode = const) -> Tensor"),
    "Generator.render": (
        "(self, planes: Tensor, ws: Tensor, c: Tensor, neural_rendering_resolution: int"
        " | None = None, deterministic: bool = True, background: Tensor | None = None) ->"
        " GeneratorOutput"
    ),
    "Generator.synthesis": (
        "(self, ws: Tensor, c: Tensor, neural_rendering_resolution: int | None = None, "
        "noise_mode: NoiseMode = const, deterministic: bool = True, background: Tensor |"
        " None = None) -> GeneratorOutput"
    ),
    "Generator.forward": (
        "(self, z: Tensor, c: Tensor, truncation_psi: float = 1.0, truncation_cutoff: "
        "int | None = None, neural_rendering_resolution: int | None = None, noise_mode:"
        " NoiseMode = const, deterministic: bool = True) -> GeneratorOutput"
    ),
    "Generator.query": ("(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]"),
    "Generator.query_density": "(self, points: Tensor, planes: Tensor) -> Tensor",
    "Generator.set_conv_dtype": (
        "(self, backbone: torch.dtype, superresolution: torch.dtype) -> None"
    ),
    "Discriminator.forward": (
        "(self, image: Tensor, image_raw: Tensor, c: Tensor, batches: int = 1, "
        "c_std: Tensor | None = None) -> Tensor"
    ),
    "Views.pictures": "(self, kind: str = image) -> NDArray[np.uint8]",
    "CameraSummary.from_labels": "(labels: Tensor) -> CameraSummary",
    "CameraSummary.from_dict": "(values: dict[str, Any]) -> CameraSummary",
    "CameraSummary.to_dict": "(self) -> dict[str, Any]",
    "CameraSummary.label": (
        "(self, yaw_radians: Tensor | Sequence[float] | float, pitch_radians: Tensor | float)"
        " -> Tensor"
    ),
    "CameraSummary.frontal_label": "(self) -> Tensor",
    "CameraSummary.default_yaws": "(self, count: int) -> list[float]",
}
FIELDS = {
    "CameraPose": "position yaw_degrees pitch_degrees radius",
    "CameraSummary": ("radius pivot center intrinsics yaw_range pitch_range yaw pitch poses"),
    "Checkpoint": (
        "config progress G D G_ema optimizers augment rng cameras latents directions encoder poses"
    ),
    "ColmapCamera": "qvec tvec params",
    "GeneratorOutput": "image image_raw image_depth alpha",
    "Inversion": "generator ws labels objective method losses poses seconds",
    "InversionSettings": "method latents tuning seconds seed",
    "MetricOptions": (
        "device batch detector detector_weights lpips_weights identity_model pose_model"
        " open_pose is_shared is_cancelled"
    ),
    "MetricResult": "name values protocol seconds",
    "PyTorch3DCamera": "R T focal_length principal_point",
    "SamplingOptions": ("cameras yaw pitch conditioning trunc trunc_cutoff nrr seed precision"),
    "Splats": "positions scales rotations opacities colors",
    "Views": "labels image image_raw depth alpha normals",
}
OTHERS = {"Config", "Discriminator", "Generator", "SHIPPED_MODEL", "UserError", "__version__"}


def member(name: str) -> Any:
    value: Any = open_eg3d
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert str(inspect.signature(member(name))).replace("'", "") == SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    kind = member(name)
    found = (
        [item.name for item in dataclasses.fields(kind)]
        if dataclasses.is_dataclass(kind)
        else kind._fields
    )
    assert " ".join(found) == FIELDS[name]


def test_names_are_these() -> None:
    functions = {name for name in SIGNATURES if "." not in name}
    assert functions | set(FIELDS) | OTHERS == set(open_eg3d.__all__)
    assert sorted(open_eg3d.__all__) == dir(open_eg3d)
    with pytest.raises(AttributeError, match="no attribute 'load_genrator'"):
        member("load_genrator")


def test_every_function_says_what_it_does() -> None:
    for name in open_eg3d.__all__:
        value = member(name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, name


def fresh(code: str, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, in a folder, with these folders and the project on the path."""
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(code: str, folder: Path) -> set[str]:
    """Packages that are loaded after some code ran."""
    ended = fresh(f"{code}; import json, sys; print(json.dumps(list(sys.modules)))", folder)
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in json.loads(ended.stdout)}


def test_what_is_not_used_is_not_loaded(tmp_path: Path) -> None:
    heavy = {"torch", "numpy", "click", "media", "metrics", "training", "data_tools"}
    assert not heavy & loaded_by("import open_eg3d", tmp_path)
    loaded = loaded_by("import open_eg3d; open_eg3d.load_generator", tmp_path)
    assert "training" in loaded
    assert not {"media", "data_tools", "trimesh"} & loaded


@pytest.mark.parametrize("name", ["training", "metrics", "media", "torch_utils"])
@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_package_of_the_same_name_is_told(name: str, kind: str, tmp_path: Path) -> None:
    own = tmp_path / f"{name}.py" if kind == "module" else tmp_path / name / "__init__.py"
    own.parent.mkdir(exist_ok=True)
    own.touch()
    ended = fresh("import open_eg3d", tmp_path, tmp_path)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("ImportError")]
    assert f"needs its own {name} " in line
    assert str(own) in line


def test_one_that_is_loaded_already_is_told_too(tmp_path: Path) -> None:
    code = "import sys, types; sys.modules['media'] = types.ModuleType('media'); import open_eg3d"
    ended = fresh(code, tmp_path)
    assert "open_eg3d needs its own media " in ended.stderr.splitlines()[-1]


def test_a_folder_without_modules_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    ended = fresh("import open_eg3d; print(open_eg3d.UserError.__name__)", tmp_path, tmp_path)
    assert ended.stdout == "UserError\n", ended.stderr


def test_types_are_for_other_programs() -> None:
    assert (ROOT / "open_eg3d" / "py.typed").exists()


if TYPE_CHECKING:  # `make lint` sees through the names that are imported late, or fails here
    generator = open_eg3d.load_generator("x.pkl")
    assert_type(generator, Generator)
    frames = open_eg3d.render(
        generator, open_eg3d.seed_latents(generator, 3), open_eg3d.view_label(generator, 30.0)
    )
    assert_type(frames.pictures(), NDArray[np.uint8])
    open_eg3d.load_generator(3)  # type: ignore[arg-type]
