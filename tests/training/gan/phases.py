"""One phase of a training step by itself."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from training.gan import loss
from training.gan.batches import Phase
from training.gan.loss import Schedule
from training.gan.trainer import Batch, Trainer


def run_phase(trainer: Trainer, phase: Phase, batch: Batch, schedule: Schedule) -> None:
    """Take a step from `batch` of which only `phase` computes and changes anything."""
    update, micro_batches = trainer._update, trainer._micro_batches

    def update_if_chosen(which: Phase) -> contextlib.AbstractContextManager[Any]:
        idle = contextlib.nullcontext(SimpleNamespace(applied=False))
        return update(which) if which is phase else idle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_update", update_if_chosen)
        patch.setattr(
            trainer,
            "_micro_batches",
            lambda which: micro_batches(which) if which is phase else iter(()),
        )
        patch.setattr(trainer, "_draw", lambda *_: batch)
        patch.setattr(trainer, "_one_move_of_w_avg", contextlib.nullcontext)
        patch.setattr(trainer, "_end_step", lambda: None)
        patch.setattr(loss, "schedule_at", lambda *_: schedule)
        trainer.step(batch.real, batch.real_c)
