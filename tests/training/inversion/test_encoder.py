"""The encoder: what it learns, that a training goes on exactly, and files of other networks."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch

from dnnlib.console import UserError
from tests.tiny import differing
from tests.training.inversion.test_parts import make_generator
from training.cameras import cameras_of
from training.inversion.encoder import (
    Encoder,
    EncoderSettings,
    EncoderTrainer,
    augmented,
    encode,
)
from training.inversion.inversion import InversionSettings, chosen_method
from training.networks.generator import Generator

FEW = EncoderSettings(steps=4, batch=4, fresh=2, rendered=1)


@pytest.fixture
def generator() -> Generator:
    return make_generator()


def test_it_learns_latents_and_cameras_of_samples(generator: Generator) -> None:
    settings = EncoderSettings(steps=80, lr=2e-3, batch=16, fresh=4, rendered=1)
    trainer = EncoderTrainer(generator, settings)
    losses = [trainer.train_step() for _ in range(settings.steps)]
    for name in ("latents", "cameras"):
        values = [one[name] for one in losses]
        assert sum(values[-10:]) < 0.85 * sum(values[:10])
    assert all((one["pictures"] > 0) == (step >= 40) for step, one in enumerate(losses))
    generator.encoder = trainer.encoder.state_dict()
    found = encode(generator, torch.zeros(3, 3, 50, 50))  # three pictures of one person
    assert found is not None
    assert found.ws.shape == (1, generator.num_ws, generator.w_dim)
    assert found.labels.shape == (3, 25)


def test_pictures_are_changed_as_photos_are() -> None:
    pictures = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    pictures[:, :, 10:20, 10:20] = 200
    seen = augmented(pictures)
    assert 0 <= float(seen.min()) < float(seen.max()) <= 1
    assert len({round(float(one.mean()), 4) for one in seen}) == 16  # exposures differ
    levels = [len(one.unique()) for one in seen]
    assert min(levels[:8]) > max(levels[8:]) == 6  # blurred or compressed: more than two a channel


def test_a_training_goes_on_exactly(generator: Generator) -> None:
    whole = EncoderTrainer(generator, FEW)
    losses = [whole.train_step() for _ in range(4)]
    first = EncoderTrainer(generator, FEW)
    for _ in range(2):
        first.train_step()
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = EncoderTrainer(generator, FEW)
    second.load(torch.load(file, weights_only=True))
    assert second.step == 2
    assert [second.train_step() for _ in range(2)] == losses[2:]
    assert differing(whole.state(), second.state()) == []
    other = EncoderTrainer(generator, dataclasses.replace(FEW, steps=5))
    for state in (first.state(), {}, [1]):
        with pytest.raises(UserError, match="another training"):
            other.load(state)  # type: ignore[arg-type]


def test_samples_give_way_when_the_pool_is_full(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.inversion.encoder.POOL_BYTES", 6 * 3 * 32 * 32)
    trainer = EncoderTrainer(generator, FEW)
    trainer.train_step()
    assert len(trainer.pool["w"]) == 4
    oldest = trainer.pool["pictures"][0].clone()
    for _ in range(3):
        trainer.train_step()
    assert {len(values) for values in trainer.pool.values()} == {6}
    assert not torch.equal(trainer.pool["pictures"][0], oldest)


def test_cameras_start_at_the_frontal_one(generator: Generator) -> None:
    """Zero turns and shifts are the frontal camera; augmentation leaves the samples' truth."""
    encoder = Encoder(generator.num_ws, generator.w_dim)
    torch.nn.init.zeros_(encoder.heads.weight)
    torch.nn.init.zeros_(encoder.heads.bias)
    w, ws, labels = encoder(torch.rand(3, 3, 32, 32), cameras_of(generator))
    torch.testing.assert_close(labels, cameras_of(generator).frontal_label().expand(3, -1))
    assert torch.equal(ws, w[:, None].expand_as(ws))


def test_files_of_other_networks_are_refused(generator: Generator) -> None:
    assert encode(generator, torch.zeros(1, 3, 32, 32)) is None
    generator.encoder = Encoder(generator.num_ws + 1, generator.w_dim).state_dict()
    with pytest.raises(UserError, match=r"the file's encoder: .* do not fit"):
        encode(generator, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("has_encoder", "settings", "method"),
    [
        (False, {}, "pti"),
        (False, {"seconds": 0.1}, "pti"),
        (True, {"seconds": 0.1}, "encoder"),
        (True, {"seconds": 5.0}, "encoder+pti"),
        (True, {"seconds": 120.0}, "pti"),
        (True, {}, "pti"),
        (True, {"method": "w"}, "w"),
    ],
)
def test_the_method_by_the_time_given(
    generator: Generator, has_encoder: bool, settings: dict[str, Any], method: str
) -> None:
    generator.encoder = {"mean": torch.zeros(8)} if has_encoder else {}
    assert chosen_method(generator, InversionSettings(**settings)) == method
