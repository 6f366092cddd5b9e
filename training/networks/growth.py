"""Larger networks that begin with smaller ones' weights (progressive growing: Karras et al. 2018,
section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from training.networks.stylegan2 import SynthesisBlock

FROM_RGB = ".fromrgb."
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
    one. Noise images of another size are drawn anew. Anything else that differs stays as it is, for
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


def _is_noise(name: str) -> bool:
    return name.rpartition(".")[2] == "noise_const"


def _block_of(name: str) -> str | None:
    found = BLOCK.match(name)
    return found.group() if found else None


def _blocks(names: dict[str, Tensor]) -> list[str]:
    """Names of the blocks, in order."""
    return list(dict.fromkeys(block for name in names if (block := _block_of(name)) is not None))
