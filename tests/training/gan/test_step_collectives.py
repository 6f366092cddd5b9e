"""What a step sends to other processes: how many collective operations, in which order, how large,
and when; on tensors of "meta" in the place of a GPU's, without any other process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.host_waits import DEVICE, HostWaits, meta_gpu
from tests.tiny import tiny_config
from torch_utils.distributed.reduction import BUCKET_BYTES, GradientAverage
from training.gan.trainer import Trainer
from training.gan.updates import Update

__all__ = ["meta_gpu"]
PROCESSES = 8


class Recorder:
    """A process group that keeps what it is asked for and does nothing."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str, int]] = []  # operation, kind of device, numbers
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_rank", lambda: 0)
        patch.setattr(dist, "get_world_size", lambda: PROCESSES)
        for name in ("all_reduce", "broadcast", "all_gather"):
            patch.setattr(dist, name, lambda *given, name=name, **how: self.note(name, given, how))
        finish = Update.finish

        def finish_and_note(update: Update, *given: Any) -> None:
            self.calls.append(("backward done", "", 0))
            finish(update, *given)

        patch.setattr(Update, "finish", finish_and_note)

    def note(self, name: str, given: tuple[Any, ...], how: dict[str, Any]) -> None:
        x: Tensor = given[1] if name == "all_gather" else given[0]
        name = f"{name}, not waited for" if how.get("async_op") else name
        self.calls.append((name, x.device.type, x.numel()))


@pytest.mark.usefixtures("meta_gpu")
def test_collectives_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per update: its gradients in buckets, the last layers' first, nearly all of them before the
    backward pass is over; whether a loss was bad, from the GPU; which parameters are in use, from
    the host. Besides, the mean latent and the augmentation's sums; nothing for statistics.
    """
    recorder = Recorder(monkeypatch)
    config = tiny_config(f"training.batch={4 * PROCESSES}", "augment.mode=ada", "augment.p=0.2")
    trainer = Trainer(config, torch.zeros(16, 25), DEVICE)
    resolution, share = config.model.resolution, len(trainer.shard)
    for _ in range(2):
        recorder.calls.clear()
        with HostWaits():
            trainer.step(torch.zeros(share, 3, resolution, resolution), torch.zeros(share, 25))
        check_step(trainer, recorder.calls[:])
    recorder.calls.clear()


def check_step(trainer: Trainer, calls: list[tuple[str, str, int]]) -> None:
    step = trainer.progress.steps - 1
    options = trainer.config.training
    averages = [trainer.G_average]
    averages += [trainer.G_average] * (step % options.g_reg_interval == 0)
    averages += [trainer.D_average]
    averages += [trainer.D_average] * (step % options.d_reg_interval == 0)
    rest = calls
    for average in averages:
        sizes = [sum(p.numel() for p in bucket) for bucket in average.buckets]
        assert all(
            4 * size <= BUCKET_BYTES or len(bucket) == 1
            for size, bucket in zip(sizes, average.buckets, strict=True)
        )
        end = rest.index(("backward done", "", 0))
        early = [call for call in rest[:end] if call[0].startswith("all_reduce, not")]
        late = [call for call in rest[end + 1 :] if call[0].startswith("all_reduce, not")]
        sent = (early + late)[: len(sizes)]
        assert sent == [("all_reduce, not waited for", "meta", size) for size in sizes]
        rest = rest[end + 1 + max(len(sizes) - len(early), 0) :]
        assert rest[:2] == [
            ("all_reduce", "meta", 1),
            ("all_reduce", "cpu", len(average.parameters)),
        ]
        rest = rest[2:]
    w_dim = trainer.config.model.generator.w_dim
    kinds = [call for call in calls if not call[0].startswith(("backward", "all_reduce, not"))]
    assert ("all_reduce", "meta", w_dim) in kinds
    assert kinds[-1] == ("all_reduce", "meta", 2)
    assert len(kinds) == 2 * len(averages) + 2


def test_most_gradients_are_sent_while_the_backward_pass_still_runs(
    monkeypatch: pytest.MonkeyPatch, meta_gpu: None
) -> None:
    del meta_gpu
    recorder = Recorder(monkeypatch)
    config = tiny_config(f"training.batch={4 * PROCESSES}", "training.gamma=0")
    trainer = Trainer(config, torch.zeros(16, 25), DEVICE)
    largest = max(4 * p.numel() for p in trainer.D_parameters)
    trainer.D_average = GradientAverage(trainer.D_parameters, bucket_bytes=largest)
    recorder.calls.clear()
    share = len(trainer.shard)
    resolution = config.model.resolution
    trainer.step(torch.zeros(share, 3, resolution, resolution), torch.zeros(share, 25))
    ends = [i for i, call in enumerate(recorder.calls) if call[0] == "backward done"]
    before = recorder.calls[ends[-2] + 1 : ends[-1]]
    early = [call for call in before if call[0].startswith("all_reduce, not")]
    assert len(trainer.D_average.buckets) > 3
    assert len(early) >= len(trainer.D_average.buckets) - 1
