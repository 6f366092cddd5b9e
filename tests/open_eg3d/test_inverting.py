"""open_eg3d.invert: methods, cameras known or not, several pictures, masks, wrong input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import open_eg3d
from dnnlib.console import UserError
from open_eg3d import InversionSettings, inverting, load_generator
from tests.released_layout import Layout, write_snapshot
from tests.tiny import orbit_labels
from tests.training.inversion.test_parts import make_generator
from training.cameras import cameras_of
from training.inversion.encoder import EncoderSettings
from training.inversion.latents import LatentSettings
from training.inversion.pti import TuningSettings
from training.networks.generator import Generator

FEW = InversionSettings(
    latents=LatentSettings(steps=3, starts=3, start_steps=2), tuning=TuningSettings(steps=3)
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator()


@pytest.fixture(autouse=True)
def no_feature_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tests compare by differences of pixels."""
    monkeypatch.setattr(inverting, "load_perceptual", lambda *_: (None, "none"))


def a_picture(size: int = 32, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.RandomState(0).randint(0, 256, (4, 4, bands)).astype(np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR)


def test_each_method_comes_nearer_than_the_one_before(generator: Generator) -> None:
    settings = InversionSettings(
        latents=LatentSettings(steps=40, lr=0.05), tuning=TuningSettings(steps=40, lr=5e-3)
    )
    c = orbit_labels(1)[0]
    found = [
        open_eg3d.invert(generator, a_picture(), c, method=method, settings=settings)
        for method in ("w", "w+", "pti")
    ]
    psnrs = [one.losses["psnr"] for one in found]
    assert psnrs == sorted(psnrs)
    assert psnrs[2] > psnrs[0] + 0.5
    assert [one.method for one in found] == ["w", "w+", "pti"]
    assert found[0].generator is found[1].generator is generator
    assert found[2].generator is not generator
    for one in found:
        assert one.ws.shape == (1, generator.num_ws, generator.w_dim)
        assert torch.equal(one.labels[0], c)  # a camera that is given stays
        error = (one.reconstruction() - one.objective.images).square().mean()
        assert float(-10 * torch.log10(error / 4)) == pytest.approx(one.losses["psnr"], abs=1e-3)
        assert set(one.poses[0]) == {"yaw", "pitch", "roll", "distance", "shift", "focal"}


def test_kinds_of_pictures_are_the_same_picture(generator: Generator) -> None:
    image = a_picture()
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1) / 127.5 - 1
    found = [
        open_eg3d.invert(generator, one, orbit_labels(1)[0], method="w", settings=FEW)
        for one in (image, array, tensor)
    ]
    for one in found[1:]:
        assert torch.equal(one.objective.images, found[0].objective.images)
        assert torch.equal(one.ws, found[0].ws)
    larger = open_eg3d.invert(generator, a_picture(100), orbit_labels(1)[0], settings=FEW)
    assert larger.objective.images.shape == (1, 3, 32, 32)


def test_an_unknown_camera_is_looked_for(generator: Generator) -> None:
    found = open_eg3d.invert(generator, a_picture(), method="w+", settings=FEW)
    (pose,) = found.poses
    assert len(pose["starts"]) == 3
    losses = [start["loss"] for start in pose["starts"]]
    assert losses == sorted(losses)
    assert 0 <= pose["sure"] <= 1
    assert pose["spread"] >= 0
    yaws = sorted(start["yaw"] for start in pose["starts"])
    low, high = np.degrees(cameras_of(generator).yaw_range)
    assert yaws[0] < low + 5
    assert yaws[2] > high - 5


def test_pictures_of_one_person_share_latents(generator: Generator) -> None:
    pictures, labels = [a_picture(), a_picture(40), a_picture()], orbit_labels(3)
    found = open_eg3d.invert(generator, pictures, labels, settings=FEW)
    assert found.ws.shape[0] == 1
    assert found.reconstruction().shape == (3, 3, 32, 32)
    assert len(found.poses) == 3
    moved = open_eg3d.invert(
        generator, pictures, labels, method="w", settings=FEW, optimise_pose=True
    )
    assert (moved.labels - labels).abs().amax(1).min() > 0


def test_alpha_and_masks_are_what_counts(generator: Generator) -> None:
    image = np.asarray(a_picture(32, "RGBA")).copy()
    image[..., 3] = 255
    image[:, :16, 3] = 0
    mask = torch.ones(32, 32)
    mask[:, :16] = 0
    by_alpha, by_mask, other = (
        open_eg3d.invert(generator, one, orbit_labels(1)[0], method="w", settings=FEW, mask=given)
        for one, given in (
            (Image.fromarray(image), None),
            (image[..., :3], mask),
            (np.where(mask.numpy()[..., None] > 0, image[..., :3], 7).astype(np.uint8), mask),
        )
    )
    assert by_alpha.objective.masks is not None
    assert torch.equal(by_alpha.objective.masks[0, 0], mask)
    torch.testing.assert_close(by_alpha.ws, by_mask.ws)
    torch.testing.assert_close(by_mask.ws, other.ws)  # what lies outside changes nothing


def test_wrong_input_is_one_line(generator: Generator) -> None:
    c = orbit_labels(1)[0]
    nowhere = make_generator()
    nowhere.cameras = None
    wide = Image.new("RGB", (40, 30))
    for words, arguments in (
        ("must be square, not 40 x 30", (generator, wide, c)),
        ("a picture is a PIL image", (generator, "photo.jpg", c)),
        ("no picture", (generator, [], c)),
        ("camera must have shape", (generator, a_picture(), c[:24])),
        ("camera must have shape", (generator, [a_picture()] * 2, c)),
        ("knows no cameras", (nowhere, a_picture(), None)),
    ):
        with pytest.raises(UserError, match=words):
            open_eg3d.invert(*arguments, settings=FEW)
    with pytest.raises(UserError, match="unknown method 'pit'"):
        open_eg3d.invert(generator, a_picture(), c, method="pit", settings=FEW)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leaves nothing"):
        open_eg3d.invert(generator, a_picture(), c, mask=torch.zeros(32, 32), settings=FEW)


def test_seconds_end_it(generator: Generator) -> None:
    phases: dict[str, int] = {}

    def tell(phase: str, done: float, loss: float) -> None:
        assert 0 <= done < 1
        assert loss > 0
        phases[phase] = phases.get(phase, 0) + 1

    open_eg3d.invert(generator, a_picture(), seconds=0.0, on_step=tell)
    assert phases == {"camera": 5, "latents": 1, "tuning": 1}


def test_encoders_are_trained_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, for pictures with and without a camera, and as a start; ended and gone on."""
    own, steps = make_generator(), EncoderSettings(steps=4, batch=4, fresh=2)
    with pytest.raises(UserError, match="no encoder; train one with"):
        open_eg3d.invert(own, a_picture(), method="encoder")

    def end(step: int, _: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(inverting, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        inverting.train_encoder(own, tmp_path / "x.state", steps, end)
    assert not own.encoder
    other = make_generator()
    with torch.no_grad():
        other.decoder.net[2].bias.add_(0.1)
    with pytest.raises(UserError, match=r"x.state is of another network; remove it"):
        inverting.train_encoder(other, tmp_path / "x.state", steps)
    told: list[int] = []
    inverting.train_encoder(own, tmp_path / "x.state", steps, lambda step, _: told.append(step))
    assert told == [3, 4]
    whole = make_generator()
    inverting.train_encoder(whole, tmp_path / "y.state", steps)
    assert all(torch.equal(own.encoder[key], value) for key, value in whole.encoder.items())
    c = orbit_labels(1)[0]
    given = open_eg3d.invert(own, a_picture(), c, method="encoder")
    assert torch.equal(given.labels[0], c)
    free = open_eg3d.invert(own, a_picture(), seconds=0.5)  # auto
    assert free.method == "encoder"
    assert torch.equal(free.ws, given.ws)
    assert not torch.equal(free.labels[0], c)
    assert free.generator is own
    moved = open_eg3d.invert(own, a_picture(), c, method="encoder", optimise_pose=True)
    assert torch.equal(moved.labels, free.labels)
    tuned = open_eg3d.invert(own, a_picture(), c, method="encoder+pti", settings=FEW)
    assert torch.equal(tuned.ws, given.ws)
    assert tuned.generator is not own
    searched = open_eg3d.invert(own, a_picture(), method="w", settings=FEW)
    assert len(searched.poses[0]["starts"]) == 4  # three, and the encoder's


@pytest.mark.parametrize("kind", ["SuperresolutionHybrid2X", "SuperresolutionHybrid8XDC"])
def test_released_layouts(kind: str, tmp_path: Path) -> None:
    layout = Layout(
        superresolution=kind,
        plane_channels=4 if kind == "SuperresolutionHybrid2X" else 32,
        neural_rendering_resolution=16,
        rendering={"depth_resolution": 4, "depth_resolution_importance": 4},
    )
    generator = load_generator(write_snapshot(tmp_path / "released.pkl", layout))
    one_step = InversionSettings(
        latents=LatentSettings(steps=1, starts=1, start_steps=1), tuning=TuningSettings(steps=1)
    )
    c = None if kind == "SuperresolutionHybrid2X" else cameras_of(generator).frontal_label()
    found = open_eg3d.invert(generator, a_picture(), c, settings=one_step)
    size = generator.config.resolution
    assert found.reconstruction().shape == (1, 3, size, size)
    assert found.ws.shape == (1, generator.num_ws, generator.w_dim)
    assert np.isfinite(found.losses["psnr"])
