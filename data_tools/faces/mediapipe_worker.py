"""Program that finds face landmarks with mediapipe; it runs in mediapipe's own Python environment
and knows nothing of this project.

On standard input: one JSON line {"width": W, "height": H} and W * H * 3 bytes of RGB for each
picture, until the end of the file. On standard output: the line {"ready": true}, then one JSON line
per picture: {"faces": [478 lists of x, y, z each], "scores": [one each]} in pixels, z growing away
from the camera, or {"error": "..."}. A score is the detector's, 0 to 1; null where a face was found
without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

CONFIDENCE = 0.5
SURE = 0.85  # in the many parts of a picture, one of which looks a little like a face by chance
CROP_PER_BOX = 2.5  # the mesh's own detector likes faces that fill two fifths of the picture
SAME_FACE = 0.5  # of a face's width, between two middles

Box = tuple[float, float, float]  # left, top and side of a square in pixels
Score = float | None  # of a detection


class Finder:
    """Mediapipe's two face detectors and its face mesh."""

    def __init__(self) -> None:
        from mediapipe.python.solutions.face_detection import FaceDetection
        from mediapipe.python.solutions.face_mesh import FaceMesh

        self.detectors = [FaceDetection(CONFIDENCE, model_selection=model) for model in (0, 1)]
        self.mesh = FaceMesh(
            static_image_mode=True,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=CONFIDENCE,
        )

    def faces(self, picture: np.ndarray) -> list[tuple[np.ndarray, Score]]:
        """Landmarks (478, 3) and score of every face in a picture (H, W, 3)."""
        height, width = picture.shape[:2]
        found = self._meshes(picture, self._boxes(picture))
        # What detectors miss: a face that fills the picture, and small ones in a large picture.
        found = found or self._meshes(
            picture,
            [
                ((-0.5 * width, -0.5 * height, 2.0 * max(width, height)), None),
                ((0, 0, max(width, height)), None),
            ],
        )
        return found or self._meshes(
            picture,
            [
                box
                for window in _windows(width, height)
                for box in self._boxes(picture, window, SURE)
            ],
        )

    def _boxes(
        self, picture: np.ndarray, window: Box | None = None, least_score: float = CONFIDENCE
    ) -> list[tuple[Box, Score]]:
        """Squares around faces and scores, in a square window of the picture or in all of it."""
        view, left, top = (
            (picture, 0.0, 0.0) if window is None else (_cut(picture, window), window[0], window[1])
        )
        height, width = view.shape[:2]
        boxes: list[tuple[Box, Score]] = []
        for detector in self.detectors:
            for detection in detector.process(view).detections or ():
                if detection.score[0] < least_score:
                    continue
                box = detection.location_data.relative_bounding_box
                side = CROP_PER_BOX * max(box.width * width, box.height * height)
                middle_x, middle_y = (
                    left + (box.xmin + box.width / 2) * width,
                    top + (box.ymin + box.height / 2) * height,
                )
                square = (middle_x - side / 2, middle_y - side / 2, side)
                boxes.append((square, float(detection.score[0])))
        return boxes

    def _meshes(
        self, picture: np.ndarray, boxes: Sequence[tuple[Box, Score]]
    ) -> list[tuple[np.ndarray, Score]]:
        found: list[tuple[np.ndarray, Score]] = []
        for (left, top, side), score in boxes:
            cut = _cut(picture, (left, top, side))
            if min(cut.shape[:2]) < 2:
                continue
            for face in self.mesh.process(cut).multi_face_landmarks or ():
                points = (
                    np.array([(point.x, point.y, point.z) for point in face.landmark])
                    * cut.shape[1]
                )
                points[:, :2] += int(left), int(top)
                if not any(_same(points, other) for other, _ in found):
                    found.append((points, score))
        return found


def _same(face: np.ndarray, other: np.ndarray) -> bool:
    distance = np.linalg.norm(face[:, :2].mean(0) - other[:, :2].mean(0))
    return bool(distance < SAME_FACE * np.ptp(other[:, 0]))


def _windows(width: int, height: int) -> Iterator[Box]:
    """Overlapping squares of half the picture's shorter side."""
    side = min(width, height) / 2
    for top in np.linspace(0, height - side, max(3, round(2 * height / side) - 1)):
        for left in np.linspace(0, width - side, max(3, round(2 * width / side) - 1)):
            yield float(left), float(top), side


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """A square of the picture, black outside of it."""
    left, top, side = (int(value) for value in box)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    return square


def _pictures(source: IO[bytes]) -> Iterator[np.ndarray]:
    while line := source.readline():
        size = json.loads(line)
        count = size["width"] * size["height"] * 3
        data = source.read(count)
        if len(data) < count:
            return
        yield np.frombuffer(data, dtype=np.uint8).reshape(size["height"], size["width"], 3)


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def main() -> None:
    """Answer pictures until standard input ends."""
    # The terminal's Ctrl-C goes to everybody; this program ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    finder = Finder()
    with contextlib.suppress(BrokenPipeError):
        _say(out, {"ready": True})
        for picture in _pictures(sys.stdin.buffer):
            try:
                faces = finder.faces(picture)
                points = [np.round(face, 3).tolist() for face, _ in faces]
                _say(out, {"faces": points, "scores": [score for _, score in faces]})
            except (RuntimeError, ValueError) as error:
                _say(out, {"error": str(error).splitlines()[0][:300]})


if __name__ == "__main__":
    main()
