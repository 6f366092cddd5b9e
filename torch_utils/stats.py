"""Running statistics by name: count, mean and standard deviation since the last reset, over all
processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.distributed.collectives import sum_over_processes


class Statistics:
    """Collects numbers without keeping them. Every process must report the same names."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Sum up on `device`, so that reporting need not wait for a GPU (MPS has no float64; its
        numbers go to the CPU).
        """
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._moments: dict[str, Tensor] = {}

    def report(self, name: str, values: Tensor | float) -> None:
        """Add all elements of `values` to the statistic `name`."""
        flat = torch.as_tensor(values).detach().flatten().to(self.device).to(torch.float64)
        moments = torch.stack([flat.new_tensor(flat.numel()), flat.sum(), flat.square().sum()])
        self._moments[name] = self._moments[name] + moments if name in self._moments else moments

    def collect(self) -> dict[str, dict[str, float]]:
        """{name: {count, mean, std}} over all processes; starts afresh."""
        names = sorted(self._moments)
        if not names:
            return {}
        table = sum_over_processes(torch.stack([self._moments[name] for name in names]))
        self._moments.clear()
        result = {}
        for name, (count, total, squares) in zip(names, table.tolist(), strict=True):
            mean = total / count if count else float("nan")
            result[name] = {
                "count": count,
                "mean": mean,
                "std": max(squares / count - mean**2, 0) ** 0.5 if count else float("nan"),
            }
        return result
