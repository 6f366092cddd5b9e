"""Running statistics by name: count, mean and standard deviation since the last reset, over all
processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.devices import upload
from torch_utils.distributed.collectives import sum_over_processes


class Statistics:
    """Collects numbers without keeping them. Every process must report the same names."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Sum up on `device`, so that reporting does not wait for a GPU (MPS has no float64; its
        numbers go to the CPU, which waits).
        """
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._moments: dict[str, Tensor] = {}
        self._conditional: set[str] = set()

    def report(self, name: str, values: Tensor | float, where: Tensor | None = None) -> None:
        """Add all elements of `values` to the statistic `name`, or none unless `where` (), bool,
        says so.
        """
        if not isinstance(values, Tensor):
            values = torch.full((1,), values, device=self.device)
        flat = upload(values.detach().flatten(), self.device).to(torch.float64)
        total = flat.sum()
        moments = torch.stack([torch.full_like(total, flat.numel()), total, flat.square().sum()])
        if where is not None:
            moments = torch.where(upload(where, self.device), moments, 0)
            self._conditional.add(name)
        self._moments[name] = self._moments[name] + moments if name in self._moments else moments

    def collect(self) -> dict[str, dict[str, float]]:
        """{name: {count, mean, std}} over all processes; starts afresh. What was reported only
        where it was not to count is left out.
        """
        names = sorted(self._moments)
        if not names:
            return {}
        table = sum_over_processes(torch.stack([self._moments[name] for name in names]))
        self._moments.clear()
        result = {}
        for name, (count, total, squares) in zip(names, table.tolist(), strict=True):
            if not count and name in self._conditional:
                continue
            mean = total / count if count else float("nan")
            result[name] = {
                "count": count,
                "mean": mean,
                "std": max(squares / count - mean**2, 0) ** 0.5 if count else float("nan"),
            }
        return result
