"""Names of metrics: what a person types, such as fid50k_full, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DetectorName = Literal["inception", "lite0"]
DETECTORS: tuple[DetectorName, ...] = ("inception", "lite0")

PPL_COUNT = 50_000
VIEW_COUNT = 256  # samples of the 3D metrics
IS_SPLITS = 10
LARGEST_COUNT = 10_000_000

VALID_FORMS = (
    "fidN, fidN_full, kidN, kidN_full, prNK, prNK_full, isN, ppl2_wend, ppl2_wendN, consistencyN,"
    " depthN, reliefN, identityN, poseN, speed; N = pictures such as 500, 2k or 50k, K = neighbours"
    " such as 3; _lite0 after fid, kid, pr and is names the feature network"
)
_EXPLANATIONS = {
    "fid": "Fréchet distance, lower is better",
    "kid": "kernel distance, lower is better",
    "pr": "shares of fakes among reals, and of reals among fakes",
    "is": "inception score, higher is better",
    "ppl": "perceptual path length, lower is better",
    "consistency": "agreement of two views: PSNR in dB, share of confirmed surface",
    "depth": "against true depth: error (0 right, 1 flat), relief (1 right)",
    "relief": "shape of the visible surface: 0 is flat, 0.47 half a sphere",
    "identity": "cosine between two views of a face",
    "pose": "a face's estimated pose against its camera, degrees",
    "speed": "frames per second, MiB per frame",
}
_COUNT = r"(?P<count>[1-9]\d*)(?P<kilo>k?)"
_PATTERNS = {
    "fid": rf"fid{_COUNT}(?P<full>_full)?(?P<lite0>_lite0)?",
    "kid": rf"kid{_COUNT}(?P<full>_full)?(?P<lite0>_lite0)?",
    "pr": rf"pr{_COUNT}(?P<neighbours>[1-9])(?P<full>_full)?(?P<lite0>_lite0)?",
    "is": rf"is{_COUNT}(?P<lite0>_lite0)?",
    "ppl": rf"ppl2_wend(?:{_COUNT})?",
    "consistency": rf"consistency(?:{_COUNT})?",
    "depth": rf"depth(?:{_COUNT})?",
    "relief": rf"relief(?:{_COUNT})?",
    "identity": rf"identity(?:{_COUNT})?",
    "pose": rf"pose(?:{_COUNT})?",
    "speed": r"speed",
}
_DEFAULT_COUNTS = {"ppl": PPL_COUNT, "speed": 1}
_SMALLEST = {"fid": 2, "kid": 2, "is": IS_SPLITS}
_NEED_REALS = ("fid", "kid", "pr", "depth")
_NEED_DETECTOR = ("fid", "kid", "pr", "is")


@dataclass(frozen=True)
class Metric:
    """One thing to compute.

    Attributes:
        name: as it is reported; ends in the feature network's name unless that is Inception.
        kind: key of the family: fid, kid, pr, is, ppl, consistency, depth, relief, identity, pose,
            speed.
        count: fakes. is_full: against all reals instead of `count` of them. neighbours: of pr.
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
        return self.kind in _NEED_REALS


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
        detector = "lite0" if groups.get("lite0") else default_detector
    count = (
        int(groups["count"]) * (1000 if groups["kilo"] else 1)
        if groups.get("count")
        else _DEFAULT_COUNTS.get(kind, VIEW_COUNT)
    )
    neighbours = int(groups.get("neighbours") or 3)
    smallest = neighbours + 1 if kind == "pr" else _SMALLEST.get(kind, 1)
    if not smallest <= count <= LARGEST_COUNT:
        raise ValueError(
            f"{match[0]}: the number of pictures must be {smallest} to {LARGEST_COUNT}"
        )
    name = (
        match[0] if detector in (None, "inception") or groups["lite0"] else f"{match[0]}_{detector}"
    )
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
