"""Serve a page of heads made with Gradio, here or as a Space: python app.py."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import contextlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from cli.devices import device_option
from cli.program import program
from data_tools.faces.photos import open_photo, square
from dnnlib.console import UserError, fail, run_cli
from dnnlib.files import local_file
from dnnlib.numbers import MAX_SEED
from media.avatar import write_avatars
from open_eg3d import (
    SHIPPED_MODEL,
    camera_path,
    invert,
    map_latents,
    mesh,
    render,
    save_mesh,
    seed_latents,
    video,
    view_label,
)
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32
from training.cameras import cameras_of
from training.networks.generator import Generator

try:
    import gradio as gr
except ModuleNotFoundError:
    fail("the page needs the package gradio; install it with: pip install -e '.[space]'", 1)

MESH_CELLS = 160
VIDEO_FRAMES = 60
LONGEST_INVERSION = 120  # seconds
KEPT_SECONDS = 3600  # files that pages have uploaded or made
LARGEST_UPLOAD = "10mb"  # pixels are limited where photos are opened
KINDS = {"picture": "png", "mesh": "glb", "video": "mp4", "page": "html"}
STYLE = """
#head .image-frame { width: min(100%, 28rem) }  /* small pictures are shown large */
#head img { width: 100%; object-fit: contain }
"""


@dataclass(frozen=True, eq=False)
class FoundIdentity:
    """What a photo became: latents (1, num_ws, w_dim), and the generator tuned to it."""

    generator: Generator
    ws: Tensor


class Studio:
    """What the page's controls do. Values come from the page."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def picture(self, found: FoundIdentity | None, *values: Any) -> Image.Image:
        """The head of a seed, mixed with another's, or of a photo; `values` are those of `_head`,
        then yaw and pitch in degrees.
        """
        *head, yaw, pitch = values
        with telling():
            generator, ws = self._head(found, *head)
            label = view_label(generator, yaw_degrees=yaw, pitch_degrees=pitch)
            return Image.fromarray(render(generator, ws, label[None]).pictures()[0, 0])

    def file(self, kind: str, found: FoundIdentity | None, *values: Any) -> Iterator[str]:
        """A file of the same head, of a kind in `KINDS`, which is gone after Gradio's copy of it
        is made.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"head.{KINDS[kind]}"
            self._write(path, kind, found, *values)
            yield str(path)

    def _write(self, path: Path, kind: str, found: FoundIdentity | None, *values: Any) -> None:
        if kind == "picture":
            self.picture(found, *values).save(path)
            return
        with telling():
            generator, ws = self._head(found, *values[:-2])
            if kind == "mesh":
                save_mesh(path, mesh(generator, ws, resolution=MESH_CELLS))
            elif kind == "video":
                video(path, generator, ws, camera_path(generator, frames=VIDEO_FRAMES))
            else:
                write_avatars(path, generator, {"head": ws}, "Head")

    def invert(self, photo: str | None, seconds: float) -> tuple[FoundIdentity, float, str]:
        """The identity in the file of a photo that is cut out around the head, its yaw, and a line
        on it.
        """
        if photo is None:
            raise gr.Error("choose a photo first")
        with telling(), torch.enable_grad():
            data = Path(photo).read_bytes()
            cut = square(open_photo(data, "the photo"), "the photo").picture
            limit = min(seconds, LONGEST_INVERSION)
            result = invert(self.generator, cut, seconds=limit)
        yaw = float(result.poses[0]["yaw"])
        line = f"Found in {result.seconds:.0f} s, {result.losses['psnr']:.1f} dB from the photo."
        line += " Yaw and pitch turn it; a new seed takes its place."
        return FoundIdentity(result.generator, result.ws), yaw, line

    def _head(
        self, found: FoundIdentity | None, seed: float, psi: float, other: float, share: float
    ) -> tuple[Generator, Tensor]:
        """A generator and latents (1, num_ws, w_dim): a photo's, or those of a seed."""
        if found is not None:
            return found.generator, found.ws
        seeds = [int(seed), int(other)]
        one, two = map_latents(
            self.generator, seed_latents(self.generator, seeds), truncation_psi=psi
        ).split(1)
        return self.generator, one.lerp(two, share)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Show what a user did wrong in the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error)) from error


def serve(generator: Generator, **options: Any) -> gr.Blocks:
    """Serve the page of a generator; `options` are those of Gradio's `launch`."""
    page = _build_page(generator)
    page.queue(max_size=20).launch(css=STYLE, max_file_size=LARGEST_UPLOAD, **options)
    return page


def _build_page(generator: Generator) -> gr.Blocks:
    studio, cameras = Studio(generator), cameras_of(generator)
    with gr.Blocks(
        title="Heads", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown("# Heads from numbers\nEach seed is a head; turn it, mix it, take it home.")
        found = gr.State(None)
        with gr.Row():
            with gr.Column():
                shown = gr.Image(
                    elem_id="head",
                    label="Head",
                    type="pil",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                kind = gr.Radio(list(KINDS), value="mesh", label="Download as")
                make = gr.Button("Make the file")
                file = gr.File(label="File", interactive=False, height=120)
            with gr.Column():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
                draw = gr.Button("Random seed", variant="primary")
                psi = gr.Slider(0, 1, 1.0, step=0.05, label="Truncation (0 is the average head)")
                other = gr.Number(1, label="Mix with", precision=0, minimum=0, maximum=MAX_SEED)
                share = gr.Slider(0, 1, 0.0, step=0.05, label="Share of the other")
                yaw = _angle("Yaw", *cameras.yaw_range, cameras.yaw)
                pitch = _angle("Pitch", *cameras.pitch_range, cameras.pitch)
                with gr.Accordion("From a photo, cut out around the head", open=False):
                    photo = gr.Image(
                        label="Photo",
                        type="filepath",
                        image_mode=None,  # the file as it is, which Gradio does not decode
                        sources=["upload", "clipboard"],
                    )
                    seconds = gr.Slider(5, LONGEST_INVERSION, 45, step=5, label="Seconds")
                    find = gr.Button("Find the head")
                    told = gr.Markdown()
        head = [seed, psi, other, share]
        values = [found, *head, yaw, pitch]
        view: dict[str, Any] = {"fn": studio.picture, "inputs": values, "outputs": shown}
        page.load(**view, api_name="picture")
        gr.on(
            [slider.change for slider in (psi, share, yaw, pitch)],
            **view,
            trigger_mode="always_last",
            show_progress="hidden",  # it would hide the head that is being turned
            api_visibility="private",
        )
        for control in (seed, other):
            control.change(lambda: None, None, found, api_visibility="private").then(
                **view, api_visibility="private"
            )
        draw.click(_random_seed, None, seed, api_visibility="private")
        make.click(studio.file, [kind, *values], file, api_name="file")
        find.click(studio.invert, [photo, seconds], [found, yaw, told], api_name="invert").then(
            **view, api_visibility="private"
        )
    return page


def _random_seed() -> int:
    return random.randrange(MAX_SEED + 1)


def _angle(name: str, low: float, high: float, middle: float) -> gr.Slider:
    """A slider over a range of radians, in degrees."""
    degrees = [round(float(torch.tensor(one).rad2deg())) for one in (low, high, middle)]
    return gr.Slider(*degrees, step=1, label=f"{name}, degrees")


@program(Heads="network", Server="host port device")
@click.option(
    "--network",
    default=str(SHIPPED_MODEL),
    metavar="FILE|DIR|URL",
    show_default="the shipped model",
    help="Checkpoint, ours or released, or a folder of weights.",
)
@click.option(
    "--host", show_default="GRADIO_SERVER_NAME, or 127.0.0.1", help="Address to listen on."
)
@click.option(
    "--port", type=click.IntRange(1, 65535), show_default="from 7860 on", help="Port to listen on."
)
@device_option
def main(network: str, host: str | None, port: int | None, device: torch.device) -> None:
    """Serve a page with sliders, downloads and photos, made with Gradio; works as a Space."""
    use_full_fp32()
    generator = open_generator(local_file(network), device)
    serve(generator, server_name=host, server_port=port)


if __name__ == "__main__":
    run_cli(main)
