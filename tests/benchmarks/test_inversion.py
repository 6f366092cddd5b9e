"""benchmarks.inversion: its figures against known ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks.inversion import depth_error, table


def test_depths_are_compared_on_the_head_after_alignment() -> None:
    true = torch.zeros(2, 8, 8)
    true[:, 2:6, 2:6] = 2.5
    found = torch.full((2, 1, 8, 8), 9.0)  # beside the head
    found[..., 2:6, 2:6] = 2.7
    assert depth_error(found, true) == pytest.approx(0, abs=1e-6)
    found[0, 0, 2:4, 2:6] += 0.1  # 8 of 32 pixels
    assert depth_error(found, true) == pytest.approx(0.1 * 8 / 32, abs=1e-6)


def test_a_table_has_means_and_poses() -> None:
    lines = list(table({"w": [[1, 2, 3, 4, 0.5, 6], [3, 2, 3, 4, 0.5, 6]]}, [0.5, 3.0]))
    assert lines[2] == "| w | 2.0 | 2.0 | 3.0 | 4.0 | 0.5000 | 6 |"
    assert lines[-1].endswith("1.75 degrees (median), below 1 in 1 of 2")
    assert [line.count("|") for line in lines[:3]] == [8, 8, 8]
