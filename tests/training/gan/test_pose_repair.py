"""Cameras that are put right: on a scene of coloured dots, drawn here, whose cameras are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import differing, orbit_labels, tiny_config
from tests.training.gan.test_trainer import make_trainer, take_steps
from tests.training.gan.test_updates import batch
from torch_utils.distributed.collectives import rank, world_size
from torch_utils.distributed.processes import run_processes
from torch_utils.stats import Statistics
from training.cameras import CameraSummary, offset_labels, offsets_between, unpack_label
from training.config.settings import Config
from training.gan.pose_repair import PoseRepair, prior_widths
from training.gan.trainer import Trainer
from training.networks.pose_network import PoseNetwork

CPU = torch.device("cpu")
CAMERAS = CameraSummary(2.7, (0.0, 0.05, 0.1), (0.0, 0.05, 0.1))
SIZE, BATCH, STEPS, REALS = 16, 16, 300, 512
DOTS = torch.tensor(
    [[x, y, z] for x in (-0.3, 0.3) for y in (-0.25, 0.25) for z in (-0.3, 0.3)]
    + [[0.0, 0.1, 0.0], [0.1, -0.1, 0.3]]
)
COLOURS = torch.rand(len(DOTS), 3, generator=torch.Generator().manual_seed(3))


def dots(c: Tensor) -> Tensor:
    """Pictures (N, 3, SIZE, SIZE) in [-1, 1] of the scene, from cameras (N, 25)."""
    cam2world, intrinsics = unpack_label(c)
    seen = (DOTS - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
    where = (seen / seen[..., 2:]) @ intrinsics.mT
    at = (torch.arange(SIZE) + 0.5) / SIZE
    near = torch.exp(-((where[..., :2, None] - at) / 0.06).square())  # (N, dots, 2, SIZE)
    light = near[:, :, 1, :, None] * near[:, :, 0, None, :]
    return torch.einsum("ndhw,dc->nchw", light, COLOURS).clamp(0, 1) * 2 - 1


def cameras(count: int, generator: torch.Generator) -> Tensor:
    yaw, pitch = torch.rand(2, count, generator=generator) * 2 - 1
    return CAMERAS.label(0.8 * yaw, 0.3 * pitch)


def disturbed(c: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    errors = widths * torch.randn(len(c), 6, generator=generator)
    return offset_labels(c, CAMERAS, *errors.split(3, dim=1))


def errors(c: Tensor, others: Tensor) -> Tensor:
    """Root mean squares (6,) of turns and shifts."""
    return offsets_between(c, others, CAMERAS).square().mean(0).sqrt()


def taught(true: Tensor, given: Tensor) -> Tensor:
    """Cameras (REALS, 25) of the reals, after the network has learnt from as good fakes."""
    config = tiny_config(f"training.batch={BATCH}")
    config.model.resolution = SIZE
    torch.manual_seed(0)
    repair, statistics = PoseRepair(config, given, CPU), Statistics(CPU)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        rows = torch.randint(REALS, (BATCH,), generator=generator)
        repair.put_right(dots(true[rows]), given[rows], step * BATCH)
        c = cameras(BATCH, generator)
        repair.learn(dots(c), c, step * BATCH, statistics)
    return repair.better(dots(true), given)


def test_offsets_are_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    c = CAMERAS.label(6.28 * torch.rand(64, generator=generator), 0.3)
    offsets = torch.randn(64, 6, generator=generator) * torch.tensor([0.6] * 3 + [0.1] * 3)
    moved = offset_labels(c, CAMERAS, *offsets.split(3, dim=1))
    torch.testing.assert_close(offsets_between(c, moved, CAMERAS), offsets, rtol=1e-4, atol=1e-5)
    assert offsets_between(c, c, CAMERAS).abs().max() < 1e-6


@pytest.mark.parametrize("size", [8, 16, 32, 128])
def test_the_network_says_cameras(size: int) -> None:
    torch.manual_seed(0)
    network = PoseNetwork(size, CAMERAS)
    intrinsics = torch.rand(5, 9)
    c = network(torch.rand(5, 3, size, size), intrinsics)
    pose, own = unpack_label(c)
    rotation = pose[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5))
    assert torch.equal(own.flatten(1), intrinsics)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    c = network(torch.rand(5, 3, size, size), CAMERAS.frontal_label()[16:].expand(5, 9))
    torch.testing.assert_close(c, CAMERAS.frontal_label().expand(5, 25), rtol=1e-5, atol=1e-5)


def test_widths_are_in_the_units_of_offsets() -> None:
    """The shift is what the picture shows: the pivot of a camera moved by it is so far off."""
    data = tiny_config("data.pose_error_shift=0.04", "data.pose_error_degrees=3").data
    widths = prior_widths(data, CAMERAS)
    assert math.degrees(widths[0]) == pytest.approx(3)
    c = CAMERAS.frontal_label()[None]
    moved = offset_labels(c, CAMERAS, torch.zeros(1, 3), torch.tensor([[float(widths[3]), 0, 0]]))
    pose, intrinsics = unpack_label(moved[0])
    seen = intrinsics @ pose[:3, :3].T @ (torch.tensor(CAMERAS.pivot) - pose[:3, 3])
    assert float(seen[0] / seen[2]) == pytest.approx(0.5 - 0.04, abs=1e-5)


def test_disturbed_cameras_are_put_right() -> None:
    """But for an error that all share: nothing tells it from a turn of the world."""
    generator = torch.Generator().manual_seed(0)
    true = cameras(REALS, generator)
    common = torch.tensor([[0.0, 0.1, 0.0]]).expand(REALS, 3)
    world = offset_labels(true, CAMERAS, common, torch.zeros(REALS, 3))
    given = disturbed(world, prior_widths(tiny_config().data, CAMERAS), generator)
    better = taught(true, given)
    before, after = errors(given, world), errors(better, world)
    assert bool((after[:3] < 0.4 * before[:3]).all())
    assert bool((after[3:] < 0.7 * before[3:]).all())


def test_good_cameras_stay() -> None:
    true = cameras(REALS, torch.Generator().manual_seed(0))
    moved = errors(taught(true, true), true)
    assert math.degrees(moved[:3].max()) < 0.5
    assert float(moved[3:].max()) < 0.01


def test_fakes_are_drawn_from_better_cameras() -> None:
    trainer = make_trainer("data.poses=repair")
    assert trainer.repair is not None
    given = trainer.camera_labels.clone()
    trainer.repair.moments = torch.tensor([[0.0], [1.0], [0.0]]).repeat(1, 6)
    take_steps(trainer, 1)
    changed = (trainer.camera_labels != given).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 12
    assert trainer.camera_labels is trainer.repair.cameras


def test_a_broken_step_spoils_nothing() -> None:
    trainer = make_trainer("data.poses=repair")
    assert trainer.repair is not None
    fakes = torch.full((4, 3, 16, 16), math.nan)
    trainer.repair.learn(fakes, orbit_labels(4), 0, trainer.statistics)
    assert all(bool(p.isfinite().all()) for p in trainer.repair.network.parameters())
    assert bool(trainer.repair.moments.isfinite().all())


def test_micro_batches_teach_the_same() -> None:
    states = []
    for size in ("null", "2"):
        trainer = make_trainer(
            "data.poses=repair", f"training.batch_gpu={size}", "discriminator.mbstd_group_size=1"
        )
        take_steps(trainer, 1)
        assert trainer.repair is not None
        states.append(trainer.repair)
    for name in ("pictures", "cameras"):
        a, b = (state.pool[name].float() for state in states)
        torch.testing.assert_close(a, b, rtol=0, atol=1)
    assert len(states[0].pool["cameras"]) == 4


def take_two_steps(device: torch.device, config: Config, folder: Path) -> None:
    trainer = Trainer(config, orbit_labels(16), device)
    for first in (0, 8):
        trainer.step(*batch(first, 8))
    assert trainer.repair is not None
    torch.save(trainer.repair.state_dict(), folder / f"{rank()} of {world_size()}")


def test_processes_learn_the_same(tmp_path: Path) -> None:
    config = tiny_config("training.batch=8", "data.poses=repair")
    take_two_steps(CPU, config, tmp_path)
    run_processes(2, "cpu", take_two_steps, config, tmp_path, hint="")
    alone, first, second = (torch.load(tmp_path / name) for name in ("0 of 1", "0 of 2", "1 of 2"))
    assert not differing(first, second)
    torch.testing.assert_close(first["cameras"], alone["cameras"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first["moments"], alone["moments"], rtol=1e-2, atol=1e-4)
    assert torch.equal(first["pool"]["cameras"], alone["pool"]["cameras"])


def test_given_cameras_leave_no_trace() -> None:
    trainer = make_trainer()
    take_steps(trainer, 1)
    assert trainer.state_dict()["poses"] == {}
