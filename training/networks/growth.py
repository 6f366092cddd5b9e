"""Larger networks that begin with smaller ones' weights (progressive growing: Karras et al. 2018,
section 2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from training.networks.discriminator import DiscriminatorBlock
from training.networks.layers import Conv2d
from training.networks.stylegan2 import SynthesisBlock

FROM_RGB = ".fromrgb."
LEAK = 0.2  # slope of the leaky ReLUs below 0
BLOCK = re.compile(r"(?:.*\.)?(?:b|block)\d+(?=\.)")


@dataclass(frozen=True)
class GrownState:
    """Weights for a network, with the blocks that it has and their source lacks, and the other way
    round.
    """

    state: dict[str, Tensor]
    added: list[str]
    dropped: list[str]

    def describe(self) -> str:
        """One line for people; empty where nothing differs."""
        parts = [
            f"{verb} {', '.join(blocks)}"
            for verb, blocks in (("new", self.added), ("left out", self.dropped))
            if blocks
        ]
        return "; ".join(parts)


def grow_state(network: nn.Module, state: dict[str, Tensor]) -> GrownState:
    """`state` of a smaller or larger network, made to fit the blocks of `network`.

    Blocks that `state` lacks keep the network's own weights, but for the colours: these begin at
    zero, so that a network with skip connections computes at first what the smaller one did,
    upsampled. Blocks that `network` lacks are left out. Of a discriminator, only the block that
    sees the picture has a layer for colours: it is new, or left out, where that block is another
    one, and new blocks before it hand the picture on (`hand_picture_on`). Noise images of another
    size are drawn anew. Anything else that differs stays as it is, for
    `load_state` to refuse.
    """
    own = network.state_dict()
    have, given = _blocks(own), _blocks(state)
    added = [block for block in have if block not in given]
    fresh = {name: value.clone() for name, value in own.items() if _block_of(name) in added}
    for block in added:
        if isinstance(network.get_submodule(block), SynthesisBlock):
            fresh[f"{block}.torgb.weight"].zero_()
    fresh |= {name: own[name] for name in own if FROM_RGB in name and name not in state}
    saw = next((block for block in given if f"{block}{FROM_RGB}weight" in state), None)
    grown = [network.get_submodule(block) for block in added]
    if saw and grown and all(isinstance(block, DiscriminatorBlock) for block in grown):
        colours = {name: state[f"{saw}{FROM_RGB}{name}"] for name in ("weight", "bias")}
        for block, values in zip(added, hand_picture_on(grown, colours), strict=True):
            fresh |= {f"{block}.{name}": value for name, value in values.items()}
    fresh |= {
        name: own[name]
        for name, value in state.items()
        if _is_noise(name) and name in own and own[name].shape != value.shape
    }
    kept = {
        name: value
        for name, value in state.items()
        if (_block_of(name) is None or _block_of(name) in have)
        and (FROM_RGB not in name or name in own)
    }
    return GrownState(kept | fresh, added, [block for block in given if block not in have])


def hand_picture_on(
    blocks: Sequence[nn.Module], colours: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Weights with which new discriminator blocks, that of the largest pictures first, make of
    them what the layer for `colours` (weight and bias) of a smaller discriminator made of smaller
    pictures. Behind random blocks it would have to learn anew, and can fail to.

    Leaky ReLUs lose nothing of values v and -v side by side, so the first channels carry the
    picture so; the others are random and have no effect at first. Where there are too few channels,
    nothing is changed.
    """
    size = colours["weight"].shape[1]
    if min(cast("DiscriminatorBlock", block).conv0.weight.shape[0] for block in blocks) < 2 * size:
        return [{} for _ in blocks]
    both_signs = torch.eye(size).repeat_interleave(2, dim=0)
    both_signs[1::2].neg_()
    found = []
    for place, block in enumerate(cast("Sequence[DiscriminatorBlock]", blocks)):
        state = {name: value.clone() for name, value in block.state_dict().items()}
        read = _reader(size, gain=math.sqrt(2))
        if block.has_fromrgb:
            _set_rows(block.fromrgb, state, "fromrgb", both_signs)
        # The last layer of a block before this one has the gain sqrt(2) / sqrt(2).
        before = read if block.has_fromrgb else _reader(size, gain=1.0)
        _set_rows(block.conv0, state, "conv0", both_signs @ before)
        if place < len(blocks) - 1:
            _set_rows(block.conv1, state, "conv1", both_signs @ read)
            state["skip.weight"][: 2 * size] = 0
        else:
            # A layer of 1 x 1 weights scales them by this; conv1's output is scaled by 1 / sqrt(2).
            mix = colours["weight"][:, :, 0, 0] * size**-0.5 * math.sqrt(2)
            _set_rows(block.conv1, state, "conv1", mix @ read)
            state["conv1.bias"] = colours["bias"] * math.sqrt(2)
            state["skip.weight"].zero_()
        found.append(state)
    return found


def _reader(size: int, gain: float) -> Tensor:
    """The matrix (size, 2 * size) that reads values from pairs of leaky ReLUs, of that gain, of v
    and -v.
    """
    matrix = torch.zeros(size, 2 * size)
    rows = torch.arange(size)
    matrix[rows, 2 * rows] = 1 / ((1 + LEAK) * gain)
    matrix[rows, 2 * rows + 1] = -matrix[rows, 2 * rows]
    return matrix


def _set_rows(layer: Conv2d, state: dict[str, Tensor], name: str, rows: Tensor) -> None:
    """Let the first outputs of a layer be these combinations (K, I) of its first inputs at the same
    pixel, and of nothing else.
    """
    weight = state[f"{name}.weight"]
    weight[: len(rows)] = 0
    middle = weight.shape[-1] // 2
    weight[: len(rows), : rows.shape[1], middle, middle] = rows / layer.weight_gain
    state[f"{name}.bias"][: len(rows)] = 0


def _is_noise(name: str) -> bool:
    return name.rpartition(".")[2] == "noise_const"


def _block_of(name: str) -> str | None:
    found = BLOCK.match(name)
    return found.group() if found else None


def _blocks(names: dict[str, Tensor]) -> list[str]:
    """Names of the blocks, in order."""
    return list(dict.fromkeys(block for name in names if (block := _block_of(name)) is not None))
