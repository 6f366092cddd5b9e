"""Measure the shipped model, and keep the numbers that README.md and models/README.md quote in
models/figures.json: python docs/measure_model.py [consistency sets relief depth speed pose].

Without names all but pose, which needs `dataset_tool.py faces --setup` once. The built-in heads are
rendered into the cache where they are not there yet. A test compares the pages with the file, and
the file's hash with the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_tools.faces.angles import open_pose_estimator  # noqa: E402
from data_tools.heads.dataset import (  # noqa: E402
    HeadsConfig,
    generate_heads,
    render_built_in_heads,
)
from dnnlib.files import atomic_write, cache_dir  # noqa: E402
from metrics.weights import file_hash  # noqa: E402
from open_eg3d import SHIPPED_MODEL, MetricOptions, load_generator, measure  # noqa: E402
from torch_utils.precision import use_full_fp32  # noqa: E402

FIGURES = ROOT / "models" / "figures.json"


def no_data() -> str | None:
    """For metrics that need none."""
    return None


def built_in_heads() -> str:
    """The heads that training without --data sees."""
    return str(render_built_in_heads())


def depth_data() -> str:
    """Heads that training has not seen, with their depth maps."""
    path = cache_dir() / "heads64-200-depth.zip"
    if not path.exists():
        generate_heads(path, HeadsConfig(count=200, resolution=64, seed=77, depth=True))
    return str(path)


@dataclass(frozen=True)
class Group:
    """Metrics that are measured together."""

    metrics: tuple[str, ...]
    data: Callable[[], str | None] = no_data
    options: MetricOptions | None = None


GROUPS = {
    "consistency": Group(("consistency64",)),
    "sets": Group(
        ("fid1k_lite0", "fid2k_lite0", "kid2k_lite0", "pr2k3_lite0", "is2k_lite0"), built_in_heads
    ),
    "relief": Group(("relief64",), built_in_heads),
    "depth": Group(("depth200",), depth_data),
    "speed": Group(("speed",)),
    "pose": Group(
        ("pose96",), options=MetricOptions(pose_model="mediapipe", open_pose=open_pose_estimator)
    ),
}


def main(names: list[str]) -> None:
    """Measure groups of metrics, and keep those of the same model that are not measured again."""
    use_full_fp32()
    digest = file_hash(SHIPPED_MODEL)
    kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    values = kept.get("figures", {}) if kept.get("network_sha256") == digest else {}
    generator = load_generator(SHIPPED_MODEL, reuse_memory=True)
    for name in names:
        group = GROUPS[name]
        for result in measure(generator, group.metrics, group.data(), options=group.options):
            values |= {key: float(f"{value:.6g}") for key, value in result.values.items()}
        content = {"network": "models/heads64.pkl", "network_sha256": digest, "figures": values}
        with atomic_write(FIGURES) as file:
            file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def renew_hash() -> None:
    """Say that the figures are of the file as it is now, whose networks are the same."""
    content = json.loads(FIGURES.read_text(encoding="utf-8"))
    content["network_sha256"] = file_hash(SHIPPED_MODEL)
    with atomic_write(FIGURES) as file:
        file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in GROUPS if name != "pose"])
