"""Reuse of freed CPU memory."""

from __future__ import annotations

import torch

from torch_utils.ops import library

KEPT_BYTES = 1 << 30
_limit: int | None = None  # bytes; None = PyTorch's allocator is as it was


def keep_freed_memory(limit: int = KEPT_BYTES) -> bool:
    """Keep up to `limit` bytes of freed CPU buffers for later tensors; True where the compiled
    operators, which do it, are there.

    Training and rendering ask for the same buffers again and again. The C library returns large
    ones to the system each time, and writing a fresh one then costs a page fault for every 4 KB:
    several times the price of the writing. Results do not depend on it.
    """
    global _limit
    if not library.load():
        return False
    torch.ops.open_eg3d.keep_freed_buffers(limit)
    _limit = limit
    return True


def drop_kept_memory() -> None:
    """Return the buffers kept so far to the system; what is freed from now on is kept again."""
    if _limit is not None:
        torch.ops.open_eg3d.keep_freed_buffers(0)
        torch.ops.open_eg3d.keep_freed_buffers(_limit)
