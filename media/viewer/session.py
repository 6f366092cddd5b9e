"""One session: controls, a camera, and a thread that keeps the picture up to date."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import viser

from dnnlib.console import UserError
from media.viewer import downloads
from media.viewer.camera import ZOOM_LIMITS, aspect_of, camera_of, orbit_of
from media.viewer.checkpoints import CheckpointFolder
from media.viewer.controls import Controls
from media.viewer.links import from_query, orbit_values, read_orbit, to_query
from media.viewer.uploads import Inverter
from media.viewer.view_renderer import Latents, View, ViewRenderer, letterbox
from training.checkpoints.show import in_units
from training.networks.generator import Generator

STILL_SECONDS = 0.2  # without a change, then the full picture is drawn
FRAME_SECONDS = 0.06  # longest time for a picture while something moves
FEWEST_PIXELS = 24
STATUS_SECONDS = 0.5  # between updates of the speed in the status line
MOST_KEYS = 50
EXPORTS = threading.Semaphore(2)  # meshes and turntables of all sessions at once

INVERSIONS = threading.Semaphore(1)  # of photos, of all sessions at once
PHASES = ("camera", "latents", "tuning")  # of an inversion, in order

Request = tuple[Latents, View, float]  # latents, camera and panel, the window's aspect


class PageGone(Exception):
    """The page that asked for what is being made was closed."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An identity made of a photo: by the generator `base`; the one that shows it, and its
    latents.
    """

    base: Generator
    generator: Generator
    entry: dict[str, Any]


class ViewerSession:
    """Serves one page until `leave`. Nothing in here is shared with other sessions but the
    networks' parameters.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        folder: CheckpointFolder,
        generator: Generator,
        name: str,
        identity: str | None = None,
        invert: Inverter | None = None,
        link: str = "",
    ) -> None:
        self.identity, self.invert = identity, invert
        self.base = generator  # what photos are inverted by, whatever a photo has tuned
        self.photos: dict[str, Photo] = {}  # gone with the page
        self.client, self.folder = client, folder
        self.is_gone = False
        self._changed_at = time.monotonic()
        self._wake = threading.Event()
        self._wanted: str | Photo | None = None  # a name of the folder, or a new identity
        self._orbit: dict[str, Any] = {}
        self._keys: list[View] = []  # of the path of the camera
        self._status_at = 0.0
        self._show_model(name)
        if values := from_query(link):
            self.controls.restore(values)
            self._look(read_orbit(values, self._frontal(), self._unit()))
        client.camera.on_update(lambda _: self.change())
        self._thread = threading.Thread(
            target=self._work, name=f"session-{client.client_id}", daemon=True
        )
        self._thread.start()

    def _show_model(self, name: str) -> None:
        """Start again with another model, or more identities: the panel is another."""
        generator = copy.copy(self.base)
        entries = {one: photo.entry for one, photo in self.photos.items()}
        generator.latents = {**self.base.latents, **entries}
        tuned = {one: photo.generator for one, photo in self.photos.items()}
        self.name, self.renderer = name, ViewRenderer(generator, tuned)
        self._seconds_a_pixel = 1e-5  # until something was drawn
        self._drawn: Request | None = None  # what is shown in full
        others = [other for other in self.folder.names() if other != name]
        acts = {
            "front": self.look_from_front,
            "screenshot": self._save_picture,
            "turntable": self._save_turntable,
            "Add keyframe": self._add_key,
            "Forget keyframes": self._forget_keys,
            "Path video": self._save_path,
            "mesh": self._save_mesh,
        }
        upload = None if self.invert is None else self._take_photo
        with self.client.atomic():
            self.client.gui.reset()
            self.controls = Controls(
                self.client.gui,
                self.renderer,
                self.change,
                acts,
                [name, *others] if others else [],
                self._choose,
                self.identity,
                upload,
            )
        self.look_from_front()

    def look_from_front(self) -> None:
        """Put the page's camera where the data's frontal one is."""
        self._look(self._frontal())

    def _frontal(self) -> dict[str, Any]:
        cameras = self.renderer.cameras
        return {"yaw": cameras.yaw, "pitch": cameras.pitch, "zoom": 1.0, "shift": (0.0, 0.0, 0.0)}

    def _unit(self) -> float:
        """The side of the model's box: of lengths in links."""
        return self.renderer.generator.rendering.box_warp

    def _look(self, orbit: dict[str, Any]) -> None:
        """Put the page's camera on an orbit (`orbit_of`)."""
        camera, renderer = self.client.camera, self.renderer
        position, target = camera_of(orbit, renderer)
        with self.client.atomic():
            camera.min_orbit_distance = 1e-3 * renderer.distance
            camera.max_orbit_distance = 1e6 * renderer.distance
            camera.up_direction = (0.0, 1.0, 0.0)
            camera.position = tuple(position.tolist())
            camera.look_at = tuple(target.tolist())
            camera.min_orbit_distance = renderer.distance / ZOOM_LIMITS[1]
            camera.max_orbit_distance = renderer.distance / ZOOM_LIMITS[0]

    def change(self) -> None:
        """Something that is seen has changed."""
        self._changed_at = time.monotonic()
        self._wake.set()

    def leave(self) -> None:
        """The page is gone."""
        self.is_gone = True
        self._wake.set()

    # ----------------------------------------------------------------------------------------------
    # drawing

    def _work(self) -> None:
        while not self.is_gone:
            if not self._succeeds(self._serve):
                self._wake.wait(1.0)

    def _succeeds(self, act: Callable[[], None]) -> bool:
        """Whether something was done; what went wrong is said, and ends no other session."""
        try:
            act()
        except PageGone:
            return False
        except UserError as error:
            self._say(str(error))
        except Exception as error:
            print(
                f"warning: session {self.client.client_id}: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
            self._say("That did not work; see the program's output.")
        else:
            return True
        return False

    def _serve(self) -> None:
        """One picture: a quick one while something moves, the full one when nothing has moved for a
        moment.
        """
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            if isinstance(wanted, str):
                self._say(f"Loading {wanted} …")
                self.base, self.photos = self.folder.load(wanted), {}
                self._show_model(wanted)
            elif wanted.base is self.base:  # no other checkpoint was chosen in the meantime
                self.identity = self._new_name()
                self.photos[self.identity] = wanted
                self._show_model(self.name)
            else:
                self._say("Another checkpoint was chosen before the photo was done; drop it again.")
        rest = STILL_SECONDS - (time.monotonic() - self._changed_at)
        if not self._wake.is_set():
            if rest > 0:
                self._wake.wait(rest)
                return
            if self._drawn != self._request():
                self._draw(is_full=True)
            self._wake.wait()
            return
        self._wake.clear()
        if not self.is_gone and self._drawn != self._request():
            self._draw(is_full=False)

    def _request(self) -> Request:
        camera = self.client.camera
        orbit = orbit_of(camera.position, camera.look_at, self.renderer)
        if orbit is not None:
            self._orbit = orbit
        return (
            self.controls.latents(),
            View(**self.controls.view(), **self._orbit),
            aspect_of(camera.image_width, camera.image_height),
        )

    def _draw(self, is_full: bool) -> None:
        request = latents, view, aspect = self._request()
        assert view.resolution is not None
        self.renderer.planes(latents)  # not a part of the frame's time
        pixels = view.resolution
        if not is_full:
            pixels = min(
                pixels, max(FEWEST_PIXELS, int((FRAME_SECONDS / self._seconds_a_pixel) ** 0.5))
            )
        started = time.monotonic()
        picture = self.renderer.render(latents, dataclasses.replace(view, resolution=pixels))
        seconds = time.monotonic() - started
        self._seconds_a_pixel += 0.3 * (seconds / pixels**2 - self._seconds_a_pixel)
        if self.is_gone:
            return
        wide = letterbox(picture, aspect, self.renderer.background(view.kind))
        self.client.scene.set_background_image(
            wide, format="png" if is_full else "jpeg", jpeg_quality=85
        )
        self._drawn = request if is_full else None
        if is_full or time.monotonic() - self._status_at > STATUS_SECONDS:
            self._status_at = time.monotonic()
            self._say(
                f"{pixels} pixels in {1000 * seconds:.0f} ms: {1 / max(seconds, 1e-6):.1f} frames"
                " per second",
                self._link() if is_full else None,
            )

    def _link(self) -> str:
        """The query of an address that shows the same."""
        told = (self._orbit, self._frontal(), self._unit())
        camera = orbit_values(*told) if self._orbit else {}
        return to_query({**self.controls.changes(), **camera})

    def _say(self, text: str, link: str | None = None) -> None:
        if not self.is_gone:
            words = "" if link is None else f" · [link to this view](/?{link})"
            self.controls.status.content = f"**{_plain(self.name)}** · {_plain(text)}{words}"

    # ----------------------------------------------------------------------------------------------
    # asked for

    def _choose(self, name: str) -> None:
        if name != self.name:
            self._wanted = name
            self.change()

    def _take_photo(self, data: bytes, is_cut_out: bool, bar: Callable[[float], None]) -> None:
        """Make an identity of an uploaded photo, and show it."""
        invert = self.invert
        assert invert is not None

        def tell(phase: str, done: float, _: float) -> None:
            if self.is_gone:
                raise PageGone
            bar(100 * (PHASES.index(phase) + done) / len(PHASES))

        def make() -> None:
            self._say("Making an identity of the photo …")
            base = self.base
            try:
                photo = Photo(base, *invert(base, data, is_cut_out, tell))
            finally:
                bar(0.0)  # before the panel that it is in goes
            self._wanted = photo
            self.change()

        self._in_turn(INVERSIONS, make, "Another photo is being worked on; try again in a moment.")

    def _in_turn(self, turns: threading.Semaphore, act: Callable[[], None], busy: str) -> None:
        """Do what few may do at once, or say that it cannot be done now."""
        if not turns.acquire(blocking=False):
            self._say(busy)
            return
        try:
            self._succeeds(act)
        finally:
            turns.release()

    def _new_name(self) -> str:
        """photo-1, photo-2, ...: the first that is no identity's yet."""
        names = (f"photo-{number}" for number in itertools.count(1))
        return next(name for name in names if name not in self.renderer.generator.latents)

    def _save_picture(self) -> None:
        self._export(
            "png", lambda renderer, latents, view: downloads.png(renderer.render(latents, view))
        )

    def _save_turntable(self) -> None:
        kind = self.controls.video()
        self._export(
            kind, lambda renderer, latents, view: downloads.turntable(renderer, latents, view, kind)
        )

    def _add_key(self) -> None:
        if len(self._keys) < MOST_KEYS:
            self._keys.append(self._request()[1])
        self._say(f"{len(self._keys)} of at most {MOST_KEYS} keyframes")

    def _forget_keys(self) -> None:
        self._keys.clear()
        self._say("No keyframes")

    def _save_path(self) -> None:
        kind, keys = self.controls.video(), list(self._keys)
        self._export(
            kind,
            lambda renderer, latents, view: downloads.path_video(
                renderer, latents, view, keys, kind
            ),
        )

    def _save_mesh(self) -> None:
        kind, is_textured, cells = self.controls.mesh()
        self._export(
            kind,
            lambda renderer, latents, _: downloads.mesh(
                renderer, latents, kind, cells, is_textured
            ),
        )

    def _export(self, suffix: str, make: Callable[[ViewRenderer, Latents, View], bytes]) -> None:
        """Make a file beside the pictures, with a renderer of its own, and hand it over."""

        def hand_over() -> None:
            latents, view, _ = self._request()
            self._say(f"Making the {suffix.upper()} …")
            renderer = ViewRenderer(self.renderer.generator, self.renderer.tuned)
            data = make(renderer, latents, view)
            if not self.is_gone:
                self.client.send_file_download(
                    f"{latents.identity or f'seed{latents.seed:04d}'}.{suffix}",
                    data,
                    save_immediately=True,
                )
                self._say(f"{suffix.upper()} of {in_units(len(data), 'B')}")

        self._in_turn(EXPORTS, hand_over, "Other files are being made; try again in a moment.")


def _plain(text: str) -> str:
    """Text without a meaning in Markdown."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()<>#+-!|" else letter for letter in text)
