"""Give the shipped model what belongs to it: an encoder, directions of the true traits of the
built-in heads, and the table of docs/inversion.md: python docs/equip_model.py [encoder directions
table]. A call that was ended goes on.

Traits are read by two regressors, trained on different heads: by the readings of one directions
are found, by those of the other they are measured. Kept are those that change their own trait and
all others that are kept by less than a fifth of that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import inversion as benchmark  # noqa: E402
from data_tools.heads.dataset import HeadsConfig, generate_heads  # noqa: E402
from dnnlib.files import atomic_write, cache_dir  # noqa: E402
from docs.measure_model import renew_hash  # noqa: E402
from metrics.detectors import load_detector  # noqa: E402
from metrics.traits import READABLE, Regressor, fit, local_features  # noqa: E402
from metrics.weights import file_hash  # noqa: E402
from open_eg3d import SHIPPED_MODEL, export, load_generator, map_latents, seed_latents  # noqa: E402
from open_eg3d.inverting import train_encoder  # noqa: E402
from torch_utils.precision import use_full_fp32  # noqa: E402
from training.cameras import cameras_of  # noqa: E402
from training.data.dataset import ImageDataset  # noqa: E402
from training.data.traits import read_traits  # noqa: E402
from training.inversion.directions import supervised_directions  # noqa: E402
from training.inversion.encoder import EncoderSettings  # noqa: E402
from training.networks.generator import Generator  # noqa: E402

ENCODER = EncoderSettings(steps=3000, fresh=6, rendered=1)
HEADS, HEADS_SEED = 1600, 78  # that no model was trained on
FAKES, TRIED, BATCH = 800, 40, 16
TABLE_HEADS = 100
# of the true traits, those that are not nearly the same as another
WANTED = (
    "female", "age", "weight", "skin_lightness", "bald", "hair_thickness", "hair_black",
    "hair_blond", "hair_grey", "beard", "nose_length", "nose_width", "nose_protrusion",
    "mouth_width", "mouth_height", "chin_height", "jaw_width", "eye_distance", "eyes_blue",
)  # fmt: skip
LEAKAGE, LEAST_CHANGE = 0.2, 0.4
BEGIN, END = "<!-- written by docs/equip_model.py -->\n", "<!-- end -->\n"
Changes = dict[str, np.ndarray]


class TraitReader:
    """Reads traits of pictures by two regressors."""

    def __init__(self) -> None:
        self.detector = load_detector("lite0", None, torch.device("cpu"))
        path = cache_dir() / f"heads64-{HEADS}-traits.zip"
        if not path.exists():
            generate_heads(path, HeadsConfig(HEADS, 64, HEADS_SEED, views_per_identity=1))
        dataset = ImageDataset(path)
        traits = read_traits(dataset.files)
        assert traits is not None
        self.names = traits.names
        true = torch.tensor([traits.rows[name] for name in dataset.file_names]).double()
        indices = torch.arange(len(dataset))
        rows = [
            self.features(torch.stack([dataset[int(i)][0] for i in part]), dataset.labels[part])
            for part in indices.split(BATCH)
        ]
        halves = [indices[0::2], indices[1::2]]
        features = torch.cat(rows)
        fields = [fit(features[half], true[half], len(half) // 5) for half in halves]
        self.regressors = [Regressor(**one) for one in fields]

    def features(self, images: Tensor, labels: Tensor) -> Tensor:
        """Features of pictures (N, 3, R, R), uint8."""
        return local_features(self.detector, images, labels)

    def readable(self) -> list[str]:
        """Wanted traits that both regressors read."""
        worst = np.minimum(*(one.r2 for one in self.regressors))
        return [name for name in WANTED if worst[self.names.index(name)] >= READABLE]

    @torch.no_grad()
    def of(self, generator: Generator, ws: Tensor) -> list[Tensor]:
        """Readings (N, T) of latents ws (N, num_ws, w_dim) from the front, by both."""
        rows = []
        for part in ws.split(BATCH):
            c = cameras_of(generator).frontal_label().expand(len(part), -1)
            image = generator.synthesis(part, c).image.clamp(-1, 1)
            rows.append(self.features(((image + 1) * 127.5).round().to(torch.uint8), c))
        return [one.read(torch.cat(rows)) for one in self.regressors]


def equip_directions(generator: Generator) -> str:
    """Find and keep directions, and tell what a step of each changes."""
    reader = TraitReader()
    ws = map_latents(generator, seed_latents(generator, range(FAKES + TRIED)))
    first, second = reader.of(generator, ws[:FAKES])
    spread, names = second.std(0), reader.readable()
    tried, before = ws[FAKES:], reader.of(generator, ws[FAKES:])[1]
    while True:
        scores = {name: first[:, reader.names.index(name)].tolist() for name in names}
        found = supervised_directions(generator, ws[:FAKES, 0], scores)
        changes: Changes = {}
        for name, step in found.items():
            after = reader.of(generator, tried + step)[1]
            changes[name] = ((after - before) / spread).mean(0).numpy()
        worst = min(names, key=lambda name: quality(name, names, changes, reader.names))
        if quality(worst, names, changes, reader.names) >= 0:
            break
        names.remove(worst)
    generator.directions = found
    lines = ["| Direction | changes its trait by | others by at most |", "|---|---|---|"]
    for name in names:
        own, leakage = change_of(name, names, changes, reader.names)
        lines.append(f"| {name} | {own:.2f} | {leakage:.0%} of that |")
    return "\n".join(lines)


def change_of(
    name: str, names: list[str], changes: Changes, all_names: tuple[str, ...]
) -> tuple[float, float]:
    """Change of a direction's own trait, and the largest of the others' over it."""
    own = changes[name][all_names.index(name)]
    others = [abs(changes[name][all_names.index(one)]) for one in names if one != name]
    return float(own), float(max(others, default=0.0) / max(abs(own), 1e-6))


def quality(name: str, names: list[str], changes: Changes, all_names: tuple[str, ...]) -> float:
    """Below 0 where a direction is not to be kept, the lower the worse."""
    own, leakage = change_of(name, names, changes, all_names)
    return min(own - LEAST_CHANGE, LEAKAGE - leakage)


def write_into(page: Path, number: int, text: str) -> None:
    """Replace passage `number` of those between the marks."""
    parts = page.read_text(encoding="utf-8").split(BEGIN)
    parts[number + 1] = f"{text}\n{END}{parts[number + 1].partition(END)[2]}"
    with atomic_write(page) as file:
        file.write(BEGIN.join(parts).encode())


def main(names: list[str]) -> None:
    """Equip the model with some of the three."""
    use_full_fp32()
    page, generator = ROOT / "docs" / "inversion.md", load_generator(SHIPPED_MODEL)
    if "encoder" in names:
        state = cache_dir() / f"encoder-{file_hash(SHIPPED_MODEL)[:16]}.state"
        train_encoder(generator, state, ENCODER, told)
    if "directions" in names:
        write_into(page, 1, equip_directions(generator))
    if {"encoder", "directions"} & set(names):
        export(generator, SHIPPED_MODEL)
        renew_hash()
    if "table" in names:
        write_into(page, 0, benchmark.measure(str(SHIPPED_MODEL), TABLE_HEADS))


def told(step: int, losses: dict[str, float]) -> None:
    """A line now and then."""
    if step % 50 == 0:
        print(step, losses, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["encoder", "directions", "table"])
