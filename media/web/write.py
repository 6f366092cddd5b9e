"""From a generator to the folder."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib.console import progress
from dnnlib.files import make_dir, temporary_dir
from media.avatar.document import PAGE as AVATAR
from media.avatar.document import script_element, value_element
from media.avatar.scene import CAMERA_NUMBERS
from media.pictures.grids import data_uri, map_seed, render_views, stack_rows
from media.web.runtime import FILES, LICENCE, runtime_files
from training.cameras import cameras_of
from training.checkpoints.onnx_graphs import (
    write_image_graph,
    write_mapping_graph,
    write_synthesis_graph,
)
from training.networks.generator import Generator

PAGE = Path(__file__).parent / "page"
SCRIPTS = (AVATAR / "camera.js", AVATAR / "controls.js", PAGE / "app.js")
WORKER = ("worker.js", "latents.js")
RUNTIME = "runtime"
QUICK_SHARE = 2  # a picture of a moving head has half the pixels per side


def _write_quick_graph(path: Path, generator: Generator) -> None:
    write_image_graph(path, generator, max(generator.rendering.resolution // QUICK_SHARE, 1))


GRAPHS: dict[str, Callable[[Path, Generator], None]] = {
    "mapping.onnx": write_mapping_graph,
    "synthesis.onnx": write_synthesis_graph,
    "image.onnx": write_image_graph,
    "quick.onnx": _write_quick_graph,
}


def page_files() -> list[Path]:
    """Names of all files of a folder, relative to it."""
    return [
        *(Path(RUNTIME) / name for name in (*FILES, LICENCE)),
        *(Path(name) for name in (*GRAPHS, *WORKER, "index.html")),
    ]


def write_web_page(folder: str | os.PathLike[str], generator: Generator, title: str) -> list[Path]:
    """Write the folder, all of it or nothing; returns its files.

    Raises:
        UserError: if the runtime cannot be fetched, the exporter refuses the network, or a file
            cannot be written.
    """
    folder = Path(folder)
    runtime = runtime_files()
    with temporary_dir(folder.parent) as scratch:
        made = Path(scratch)
        with progress(GRAPHS.items(), "ONNX graphs", unit="graph") as bar:
            for graph, write in bar:
                bar.set_postfix_str(graph)
                write(made / graph, generator)
        for path in (*runtime, *(PAGE / name for name in WORKER)):
            place = made / RUNTIME if path in runtime else made
            shutil.copy(path, make_dir(place))
        scene = {**scene_values(generator), "cpu_nodes": _cpu_nodes(made)}
        (made / "index.html").write_text(_index(scene, title), encoding="utf-8")
        for name in page_files():
            make_dir((folder / name).parent)
            (made / name).replace(folder / name)
    return [folder / name for name in page_files()]


def scene_values(generator: Generator) -> dict[str, Any]:
    """What the page must know of the generator beside its graphs."""
    cameras = cameras_of(generator)
    return {
        "resolution": generator.config.resolution,
        "z_dim": generator.z_dim,
        "ws": [generator.num_ws, generator.w_dim],
        "w_avg": generator.backbone.mapping.w_avg.tolist(),
        "conditioning": cameras.frontal_label().tolist(),
        "first": _first_picture(generator),
        "cameras": {name: getattr(cameras, name) for name in CAMERA_NUMBERS},
    }


def _cpu_nodes(folder: Path) -> dict[str, list[str]]:
    """By graph the nodes that onnxruntime-web cannot run by WebGPU although it takes them: resizing
    with a filter.
    """
    from onnx import load  # of the extra that has just written them

    found = {
        name: [node.name for node in load(folder / name).graph.node if node.op_type == "Resize"]
        for name in GRAPHS
    }
    return {name: nodes for name, nodes in found.items() if nodes}  # none is no list for ort


def _first_picture(generator: Generator) -> str:
    """What the page shows first, seed 0 from the front, as the address of a PNG within the page:
    before the runtime is loaded, and while nothing is typed.
    """
    ws = map_seed(generator, 0)
    label = cameras_of(generator).frontal_label()[None]
    return data_uri(stack_rows(render_views(generator, ws, label, kinds=("image",))))


def _index(scene: dict[str, Any], title: str) -> str:
    parts = {
        "title": html.escape(title),
        "style": (AVATAR / "style.css").read_text(encoding="utf-8"),
        "scene": value_element(scene, "scene"),
        "scripts": "\n".join(script_element(path.read_text(encoding="utf-8")) for path in SCRIPTS),
    }
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page
