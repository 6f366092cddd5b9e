"""One update of a network: gradients of micro-batches added up, averaged over processes, and one
optimiser step if all is finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from torch_utils.devices import is_asynchronous
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.stats import Statistics


class Update:
    """What an update has gathered so far. Nothing of it counts before `finish` has found it finite
    in all processes.
    """

    def __init__(
        self, average: GradientAverage, optimizer: torch.optim.Optimizer, samples: int
    ) -> None:
        """Begin an update of the parameters of `average`, which require gradients, from `samples`
        samples of this process.
        """
        self.parameters, self.average, self.optimizer, self.samples = (
            average.parameters,
            average,
            optimizer,
            samples,
        )
        self.applied = torch.zeros((), dtype=torch.bool)  # known once it is finished
        self.norm = torch.zeros(())
        self._seen = 0  # samples
        self._bad_losses = self.parameters[0].new_zeros(1) if self.parameters else torch.zeros(1)
        self._reports: list[tuple[str, Tensor]] = []

    def backward(self, value: Tensor, part: Tensor) -> None:
        """Accumulate the gradient of the mean over the whole batch; `value` is the mean over the
        samples in `part`.
        """
        self._bad_losses += ~value.detach().isfinite()
        self._seen += len(part)
        if self._seen == self.samples:
            self.average.expect_last()
        (value * (len(part) / self.samples)).backward()

    def report(self, name: str, values: Tensor) -> None:
        """Statistics of this update, which count if it is applied."""
        self._reports.append((name, values.detach()))

    def finish(self, statistics: Statistics) -> None:
        """Average over processes; take the step and tell the statistics, unless a loss or a
        gradient of any process is not finite.

        A GPU finds that out by itself, and skips what it has been told to do, while the host goes
        on; the optimiser then is a fused one.
        """
        bad_losses = self.average.finish(self._bad_losses)
        self.norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )
        self.applied = self.norm.isfinite() & (bad_losses[0] == 0)
        if is_asynchronous(self.applied.device):
            step_where(self.optimizer, self.applied)
        elif self.applied:
            self.optimizer.step()
        else:
            return
        for name, values in self._reports:
            statistics.report(name, values, where=self.applied)


def step_where(optimizer: torch.optim.Optimizer, applied: Tensor) -> None:
    """A step of a fused optimiser where `applied` (), bool, says so, without a wait for it."""
    setattr(optimizer, "found_inf", (~applied).float())  # noqa: B010 - which mypy does not know
    optimizer.step()
    delattr(optimizer, "found_inf")


@contextlib.contextmanager
def update_of(
    average: GradientAverage, optimizer: torch.optim.Optimizer, samples: int, statistics: Statistics
) -> Iterator[Update]:
    """Let the parameters of `average` collect gradients meanwhile, then finish the update."""
    for p in average.parameters:
        p.requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)
    average.begin()
    update = Update(average, optimizer, samples)
    yield update
    for p in average.parameters:
        p.requires_grad_(False)
    update.finish(statistics)
