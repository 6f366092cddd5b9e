"""Random numbers that belong to samples: each sample of a batch may draw from a stream of its own.

A batch that is divided among processes and micro-batches must give the results of the undivided
one. What a sample draws must then depend on its place in the whole batch and neither on the process
that handles it nor on its neighbours. Code that draws for samples calls `rand`, `randn` and
`randint` here; inside `samples_draw_from` they take each sample's numbers from its own
stream, elsewhere from torch's global generator, as the functions of torch do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_current: SampleStreams | None = None


class SampleStreams:
    """One stream of random numbers for each of some samples."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """Start the streams at `seeds`, one for each sample; each kind of device has streams of its
        own.
        """
        self.seeds = list(seeds)
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """The samples' generators for numbers on `device`."""
        if device not in self._generators:
            self._generators[device] = [
                torch.Generator(device).manual_seed(seed) for seed in self.seeds
            ]
        return self._generators[device]

    def draw(
        self,
        kind: Callable[..., Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """`kind(*shape)` whose row i is drawn by sample i % n of the n samples: several rows a
        sample stand one batch after the other.

        Raises:
            ValueError: if the rows do not divide among the samples.
        """
        rows, rest = divmod(shape[0], len(self.seeds))
        if rest:
            raise ValueError(
                f"{shape[0]} rows do not divide among the streams of {len(self.seeds)} samples"
            )
        size = (rows, *shape[1:])
        drawn = [
            kind(size, generator=generator, dtype=dtype, device=device)
            for generator in self.generators(device)
        ]
        return torch.stack(drawn, dim=1).flatten(0, 1)


@contextlib.contextmanager
def samples_draw_from(streams: SampleStreams) -> Iterator[None]:
    """Let the samples of every batch that draws meanwhile use `streams`."""
    global _current
    before, _current = _current, streams
    try:
        yield
    finally:
        _current = before


def rand(
    *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Numbers in [0, 1) of `shape` (N, ...) for N samples."""
    return _draw("rand", list(shape), dtype, torch.device(device))


def randn(
    *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers of `shape` (N, ...) for N samples."""
    return _draw("randn", list(shape), dtype, torch.device(device))


def randint(high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Whole numbers from 0 to `high` - 1, int64, of `shape` (N, ...) for N samples."""
    return (_draw("rand", list(shape), torch.float64, torch.device(device)) * high).long()


def _draw(kind: str, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return _draw_when_run(kind, shape, dtype, device)
    return _draw_now(kind, shape, dtype, device)


def _draw_now(kind: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    function = torch.rand if kind == "rand" else torch.randn
    if _current is None:
        return function(shape, dtype=dtype, device=device)
    return _current.draw(function, shape, dtype, device)


@torch.library.custom_op(
    "open_eg3d_random::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _draw_when_run(
    kind: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The same as an operator that torch.compile leaves alone: it would otherwise draw from a
    generator of its own.
    """
    return _draw_now(kind, shape, dtype, device)


@_draw_when_run.register_fake
def _(kind: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG001 - its shape tells all
    return torch.empty(shape, dtype=dtype, device=device)
