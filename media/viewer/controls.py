"""The controls of one session and their values. A page may send anything as a value: each is
brought within its limits here.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import viser

from dnnlib.numbers import MAX_SEED
from media.viewer.camera import bounded
from media.viewer.links import read_value
from media.viewer.uploads import LARGEST_PHOTO
from media.viewer.view_renderer import KINDS, Latents, ViewRenderer

MOST_ON_SLIDER = 999  # seeds beyond are typed
PSI_LIMITS = (-1.0, 2.0)
STEP_LIMITS = (-4.0, 4.0)
BY_SEED = "by seed"
FOV_LIMITS = (2.0, 120.0)
RESOLUTIONS = (16, 256)
SAMPLES = (6, 96)
VIDEO_FORMATS = ("mp4", "gif")
MESH_FORMATS = {
    "GLB": ("glb", False),
    "GLB with texture": ("glb", True),
    "PLY": ("ply", False),
    "OBJ": ("obj", False),
}
MESH_RESOLUTIONS = ("64", "128", "192", "256")
KEYFRAME_BUTTONS = ("Add keyframe", "Forget keyframes", "Path video")
STEPS = {"Previous": -1, "Next": 1}


class Controls:
    """The panel beside the picture.

    Args:
        changed: Called when a control changes the picture.
        acts: What each button does, by its name.
        checkpoints: Names to choose from, the shown one first; none = there is no choice.
        identity: Name of the file's latents that are shown first; None = a seed.
        upload: Takes a photo's bytes, whether it is cut out already, and a function to call with
            the progress in per cent; None = no photos are taken.
    """

    def __init__(
        self,
        gui: viser.GuiApi,
        renderer: ViewRenderer,
        changed: Callable[[], None],
        acts: dict[str, Callable[[], None]],
        checkpoints: Sequence[str] = (),
        choose: Callable[[str], None] = lambda _: None,
        identity: str | None = None,
        upload: Callable[[bytes, bool, Callable[[float], None]], None] | None = None,
    ) -> None:
        self.gui, self.renderer, self.changed, self.acts = gui, renderer, changed, acts
        self.status = gui.add_markdown("")
        if upload is not None:
            with gui.add_folder("Photo"):
                self._add_photo(upload)
        with gui.add_folder("Head"):
            self._add_head(identity)
        self.edits = self._add_edits()
        with gui.add_folder("Two heads", expand_by_default=False):
            self.other_identity = self._add_identities("Second identity", None)
            self.other_seed = self._watched(gui.add_slider("Second seed", 0, MOST_ON_SLIDER, 1, 1))
            self.blend = self._watched(
                gui.add_slider("Blend", 0.0, 1.0, 0.01, 0.0, hint="0 the first seed, 1 the second")
            )
        with gui.add_folder("Mix styles", expand_by_default=False):
            self._add_mixing()
        with gui.add_folder("Picture"):
            self._add_picture()
        with gui.add_folder("Camera", expand_by_default=False):
            self._add_camera()
        with gui.add_folder("Save", expand_by_default=False):
            self._add_saving()
        if checkpoints:
            with gui.add_folder("Checkpoint", expand_by_default=False):
                self.checkpoint = gui.add_dropdown(
                    "File", tuple(checkpoints), initial_value=checkpoints[0]
                )
                self.checkpoint.on_update(lambda _: choose(str(self.checkpoint.value)))
        self._start = {name: handle.value for name, handle in self._linked().items()}

    def _watched(self, handle: Any) -> Any:
        handle.on_update(lambda _: self.changed())
        return handle

    # ----------------------------------------------------------------------------------------------
    # building

    def _add_head(self, identity: str | None) -> None:
        layers = self.renderer.generator.num_ws
        self.identity = self._add_identities("Identity", identity)
        self.seed = self._watched(self.gui.add_slider("Seed", 0, MOST_ON_SLIDER, 1, 0))
        steps = self.gui.add_button_group("Go to", (*STEPS, "Random"))
        steps.on_click(lambda _: self._step(str(steps.value)))
        self.psi = self._watched(
            self.gui.add_slider(
                "Truncation", *PSI_LIMITS, 0.05, 1.0, hint="1 none, 0 the average head"
            )
        )
        self.cutoff = self._watched(
            self.gui.add_slider(
                "Truncated layers", 0, layers, 1, layers, hint="N layers, from the coarsest"
            )
        )

    def _linked(self) -> dict[str, Any]:
        """The controls that a link restores, by their names in it."""
        chosen = {"identity": self.identity, "second-identity": self.other_identity}
        return {
            **{name: handle for name, handle in chosen.items() if handle is not None},
            **{f"edit.{name}": handle for name, handle in self.edits.items()},
            "seed": self.seed,
            "truncation": self.psi,
            "truncated-layers": self.cutoff,
            "second-seed": self.other_seed,
            "blend": self.blend,
            "mix": self.mix,
            "style-seed": self.style_seed,
            "style-layers": self.style_layers,
            "view": self.kind,
            "pixels": self.resolution,
            "samples": self.samples,
            "field-of-view": self.fov,
            "conditioning-yaw": self.conditioning[0],
            "conditioning-pitch": self.conditioning[1],
        }

    def _add_identities(self, label: str, first: str | None) -> Any:
        """A choice of the file's named latents; None if it holds none."""
        names = tuple(self.renderer.generator.latents)
        if not names:
            return None
        start = first if first in names else BY_SEED
        return self._watched(self.gui.add_dropdown(label, (BY_SEED, *names), initial_value=start))

    def _add_photo(self, upload: Callable[[bytes, bool, Callable[[float], None]], None]) -> None:
        is_cut_out = self.gui.add_checkbox(
            "Cut out already", False, hint="as the training pictures are; else a face is looked for"
        )
        button = self.gui.add_upload_button(
            "Choose or drop a photo",
            mime_type="image/*",
            hint=f"at most {LARGEST_PHOTO >> 20} MB; stays in this program's memory",
        )
        bar: Any = self.gui.add_progress_bar(0.0)

        def take(_: object) -> None:
            upload(
                button.value.content,
                is_cut_out.value is True,
                functools.partial(setattr, bar, "value"),
            )

        button.on_upload(take)

    def _add_edits(self) -> dict[str, Any]:
        """A slider for each direction of the file."""
        names = list(self.renderer.generator.directions)
        if not names:
            return {}
        with self.gui.add_folder("Edit"):
            return {
                name: self._watched(
                    self.gui.add_slider(name, *STEP_LIMITS, 0.1, 0.0, hint="standard deviations")
                )
                for name in names
            }

    def _add_mixing(self) -> None:
        layers = self.renderer.generator.num_ws
        self.mix = self._watched(self.gui.add_checkbox("Mix", False))
        self.style_seed = self._watched(self.gui.add_slider("Style seed", 0, MOST_ON_SLIDER, 1, 2))
        self.style_layers = self._watched(
            self.gui.add_multi_slider(
                "Its layers", 0, layers - 1, 1, (layers // 2, layers - 1), hint="0 the coarsest"
            )
        )

    def _add_picture(self) -> None:
        renderer = self.renderer
        most, samples = max(RESOLUTIONS[1], renderer.resolution), max(SAMPLES[1], renderer.samples)
        self.kind = self._watched(self.gui.add_dropdown("View", KINDS, initial_value=KINDS[0]))
        self.resolution = self._watched(
            self.gui.add_slider(
                "Rendering pixels",
                min(RESOLUTIONS[0], renderer.resolution),
                most,
                1,
                renderer.resolution,
            )
        )
        self.samples = self._watched(
            self.gui.add_slider(
                "Samples per ray",
                min(SAMPLES[0], renderer.samples),
                samples,
                1,
                renderer.samples,
                hint="of the first pass",
            )
        )

    def _add_camera(self) -> None:
        renderer = self.renderer
        cameras, is_conditioned = (
            renderer.cameras,
            renderer.generator.config.generator.pose_conditioning,
        )
        fov = min(max(round(renderer.field_of_view, 1), FOV_LIMITS[0]), FOV_LIMITS[1])
        self.fov = self._watched(
            self.gui.add_slider("Field of view", *FOV_LIMITS, 0.1, fov, hint="degrees")
        )
        self.front = self.gui.add_button("Front")
        self.front.on_click(lambda _: self.acts["front"]())
        hint = (
            "degrees; the camera pose given to the mapping network"
            if is_conditioned
            else "this model was trained without it"
        )
        angles = (
            ("Conditioning yaw", math.degrees(cameras.yaw), 180.0),
            ("Conditioning pitch", math.degrees(cameras.pitch), 85.0),
        )
        self.conditioning = [
            self._watched(
                self.gui.add_slider(
                    name,
                    -limit,
                    limit,
                    0.5,
                    round(2 * start) / 2,
                    disabled=not is_conditioned,
                    hint=hint,
                )
            )
            for name, start, limit in angles
        ]
        self._default_conditioning = tuple(handle.value for handle in self.conditioning)

    def _act(self, name: str, _: object) -> None:
        self.acts[name]()

    def _add_saving(self) -> None:
        self.gui.add_button("Picture (PNG)").on_click(lambda _: self.acts["screenshot"]())
        self.video_format = self.gui.add_dropdown(
            "Video format", VIDEO_FORMATS, initial_value=VIDEO_FORMATS[0]
        )
        self.gui.add_button("Turntable").on_click(lambda _: self.acts["turntable"]())
        for label in KEYFRAME_BUTTONS:
            self.gui.add_button(label).on_click(functools.partial(self._act, label))
        self.mesh_format = self.gui.add_dropdown(
            "Mesh format", tuple(MESH_FORMATS), initial_value="GLB"
        )
        self.mesh_resolution = self.gui.add_dropdown(
            "Mesh cells", MESH_RESOLUTIONS, initial_value="128"
        )
        self.gui.add_button("Mesh").on_click(lambda _: self.acts["mesh"]())

    def _step(self, name: str) -> None:
        seed = int(bounded(self.seed.value, 0, MAX_SEED, 0))
        seed = seed + STEPS[name] if name in STEPS else random.randint(0, MOST_ON_SLIDER)
        self.seed.value = seed % (MOST_ON_SLIDER + 1)
        self.changed()

    # ----------------------------------------------------------------------------------------------
    # reading

    def changes(self) -> dict[str, Any]:
        """Values that are others than at first, by their names in a link."""
        values = {name: handle.value for name, handle in self._linked().items()}
        return {name: value for name, value in values.items() if value != self._start[name]}

    def restore(self, values: Mapping[str, str]) -> None:
        """Set controls as a link says."""
        for name, handle in self._linked().items():
            if name in values:
                options = getattr(handle, "options", ())
                handle.value = read_value(values[name], self._start[name], options)

    def latents(self) -> Latents:
        """Latents that the controls choose."""
        layers = self.renderer.generator.num_ws
        angles = tuple(bounded(handle.value, -180, 180, 0) for handle in self.conditioning)
        cutoff = int(bounded(self.cutoff.value, 0, layers, layers))
        return Latents(
            seed=self._seed(self.seed),
            identity=self._named(self.identity),
            other_identity=self._named(self.other_identity),
            edits=self._steps(),
            truncation_psi=bounded(self.psi.value, *PSI_LIMITS, 1.0),
            truncation_cutoff=None if cutoff == layers else cutoff,
            other_seed=self._seed(self.other_seed),
            blend=bounded(self.blend.value, 0, 1, 0),
            style_seed=self._seed(self.style_seed) if self.mix.value is True else None,
            style_layers=self._layers(),
            conditioning=None
            if angles == self._default_conditioning
            else (math.radians(angles[0]), math.radians(angles[1])),
        )

    def view(self) -> dict[str, Any]:
        """`kind`, `resolution`, `samples` and `field_of_view` of a `View`."""
        renderer = self.renderer
        kind = self.kind.value
        return {
            "kind": kind if kind in KINDS else KINDS[0],
            "resolution": int(
                bounded(
                    self.resolution.value,
                    4,
                    max(RESOLUTIONS[1], renderer.resolution),
                    renderer.resolution,
                )
            ),
            "samples": int(
                bounded(self.samples.value, 4, max(SAMPLES[1], renderer.samples), renderer.samples)
            ),
            "field_of_view": self._field_of_view(),
        }

    def video(self) -> str:
        """Format of a turntable."""
        kind = self.video_format.value
        return kind if kind in VIDEO_FORMATS else VIDEO_FORMATS[0]

    def mesh(self) -> tuple[str, bool, int]:
        """Format, whether with a texture, and cells per side."""
        kind, is_textured = MESH_FORMATS.get(str(self.mesh_format.value), MESH_FORMATS["GLB"])
        cells = str(self.mesh_resolution.value)
        return (
            kind,
            is_textured,
            int(cells) if cells in MESH_RESOLUTIONS else int(MESH_RESOLUTIONS[0]),
        )

    def _field_of_view(self) -> float | None:
        """None while it is the data's, which the slider rounds."""
        chosen = bounded(self.fov.value, *FOV_LIMITS, self.renderer.field_of_view)
        return None if abs(chosen - self.renderer.field_of_view) < 0.051 else chosen

    def _layers(self) -> tuple[int, int]:
        value, last = self.style_layers.value, self.renderer.generator.num_ws - 1
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            return (0, last)
        first, second = sorted(int(bounded(part, 0, last, 0)) for part in value)
        return (first, second)

    def _named(self, handle: Any) -> str | None:
        value = handle.value if handle is not None else None
        return value if value in self.renderer.generator.latents else None

    def _steps(self) -> tuple[tuple[str, float], ...]:
        steps = ((name, bounded(one.value, *STEP_LIMITS, 0)) for name, one in self.edits.items())
        return tuple((name, amount) for name, amount in steps if amount)

    @staticmethod
    def _seed(handle: Any) -> int:
        return int(bounded(handle.value, 0, MAX_SEED, 0))
