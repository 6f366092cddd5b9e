"""Names of metrics: what a person types, such as fid50k_full, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DetectorName = Literal["inception", "lite0", "lite1"]
DETECTORS: tuple[DetectorName, ...] = ("inception", "lite0", "lite1")

PPL_COUNT = 50_000
VIEW_COUNT = 256  # samples of the 3D metrics
IS_SPLITS = 10
LARGEST_COUNT = 10_000_000

VALID_FORMS = (
    "fidN, fidN_full, kidN, kidN_full, prNK, prNK_full, coverageNK, coverageNK_full, isN, fid3dN,"
    " traitsN, normalsN, ppl2_wend, ppl2_wendN, consistencyN, strictN, shapeN, depthN, reliefN,"
    " identityN, poseN, speed; N = pictures such as 500, 2k or 50k, K = neighbours such as 3;"
    " _lite0 or _lite1 after those of fid to normals names the feature network"
)
_EXPLANATIONS = {
    "fid": "Fréchet distance, lower is better",
    "kid": "kernel distance, lower is better",
    "pr": "shares of fakes among reals, and of reals among fakes",
    "coverage": "share of reals with a fake near them; density of fakes where reals are",
    "is": "inception score, higher is better",
    "fid3d": "Fréchet distance seen from another camera than conditioned on, lower is better",
    "traits": "distance of fakes' traits to reals', 1 is what other reals have",
    "normals": "Fréchet distance of pictures of normals, lower is better",
    "ppl": "perceptual path length, lower is better",
    "consistency": "agreement of two views: PSNR in dB, share of confirmed surface",
    "strict": "agreement of views 5, 15 and 30 degrees apart, and one pixel apart, in dB",
    "depth": "against true depth: error (0 right, 1 flat), relief (1 right)",
    "shape": "bands, asymmetry and variety of depth, beside the reals'",
    "relief": "shape of the visible surface: 0 is flat, 0.47 half a sphere",
    "identity": "cosine between two views of a face",
    "pose": "a face's estimated pose against its camera, degrees",
    "speed": "frames per second, MiB per frame",
}
_COUNT = r"(?P<count>[1-9]\d*)(?P<kilo>k?)"
_NETWORK = "(?:_(?P<network>lite0|lite1))?"
_FULL, _NEIGHBOURS = "(?P<full>_full)?", "(?P<neighbours>[1-9])"
_PATTERNS = {
    **{kind: kind + _COUNT + _FULL + _NETWORK for kind in ("fid", "kid")},
    **{kind: kind + _COUNT + _NEIGHBOURS + _FULL + _NETWORK for kind in ("pr", "coverage")},
    **{kind: kind + _COUNT + _NETWORK for kind in ("is", "fid3d", "traits", "normals")},
    **{
        kind: f"{kind}(?:{_COUNT})?"
        for kind in ("consistency", "strict", "depth", "shape", "relief", "identity", "pose")
    },
    "ppl": f"ppl2_wend(?:{_COUNT})?",
    "speed": "speed",
}
_DEFAULT_COUNTS = {"ppl": PPL_COUNT, "speed": 1}
_SMALLEST = dict.fromkeys(("fid", "kid", "fid3d", "traits", "normals", "shape"), 2) | {
    "is": IS_SPLITS
}
_OF_NEIGHBOURS = ("pr", "coverage")
_OF_PICTURES = ("fid", "kid", *_OF_NEIGHBOURS, "is")
_NEED_DETECTOR = (*_OF_PICTURES, "fid3d", "traits", "normals")
_NEED_NO_REALS = (
    "is",
    "ppl",
    "consistency",
    "strict",
    "relief",
    "shape",
    "identity",
    "pose",
    "speed",
)


@dataclass(frozen=True)
class Metric:
    """One thing to compute.

    Attributes:
        name: as it is reported; ends in the feature network's name unless that is Inception.
        kind: key of the family, as in the table of patterns.
        count: fakes. is_full: against all reals instead of `count` of them. neighbours: of pr and
            coverage.
        detector: feature network, none for metrics without one.
    """

    name: str
    kind: str
    count: int
    is_full: bool = False
    neighbours: int = 3
    detector: DetectorName | None = None

    @property
    def needs_reals(self) -> bool:
        """Whether real pictures are compared with."""
        return self.kind not in _NEED_NO_REALS

    @property
    def is_of_pictures(self) -> bool:
        """Whether it compares sets of pictures as they are, without looking at the generator."""
        return self.kind in _OF_PICTURES

    @property
    def needed_reals(self) -> int:
        """Real pictures that it takes at least."""
        if not self.needs_reals:
            return 0
        return self.neighbours + 1 if self.is_full else self.count


def parse_metric(text: str, detector: DetectorName = "inception") -> Metric:
    """The metric of a name; `detector` is used where the name tells none.

    Raises:
        ValueError: for a name of no metric, with the valid forms.
    """
    for kind, pattern in _PATTERNS.items():
        if match := re.fullmatch(pattern, text.strip(), re.ASCII):
            return _metric(kind, match, detector)
    raise ValueError(f"unknown metric {text.strip()!r}; valid are {VALID_FORMS}")


def _metric(kind: str, match: re.Match[str], default_detector: DetectorName) -> Metric:
    groups = match.groupdict()
    detector: DetectorName | None = None
    if kind in _NEED_DETECTOR:
        named = groups["network"]
        detector = next((own for own in DETECTORS if own == named), default_detector)
    count = (
        int(groups["count"]) * (1000 if groups["kilo"] else 1)
        if groups.get("count")
        else _DEFAULT_COUNTS.get(kind, VIEW_COUNT)
    )
    neighbours = int(groups.get("neighbours") or 3)
    smallest = neighbours + 1 if kind in _OF_NEIGHBOURS else _SMALLEST.get(kind, 1)
    if not smallest <= count <= LARGEST_COUNT:
        raise ValueError(
            f"{match[0]}: the number of pictures must be {smallest} to {LARGEST_COUNT}"
        )
    is_plain = detector in (None, "inception") or groups["network"]
    name = match[0] if is_plain else f"{match[0]}_{detector}"
    return Metric(name, kind, count, bool(groups.get("full")), neighbours, detector)


def explain(name: str) -> str:
    """A metric in a few words; `name` as it is reported."""
    return _EXPLANATIONS[parse_metric(name).kind]


def parse_metrics(texts: Sequence[str], detector: DetectorName = "inception") -> list[Metric]:
    """Metrics of several names, each once, in their order.

    Raises:
        ValueError: as `parse_metric`, or if there is no name.
    """
    metrics = {metric.name: metric for metric in (parse_metric(text, detector) for text in texts)}
    if not metrics:
        raise ValueError(f"no metric is named; valid are {VALID_FORMS}")
    return list(metrics.values())
