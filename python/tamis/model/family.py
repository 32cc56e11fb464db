"""Family: the few facts about an architecture that pruning block by block needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Models built of the same kind of block.

    A block is called as the model itself calls it: with its hidden states first (or named
    `hidden`), and the masks and position embeddings that the model made for it.

    Attributes:
        name: Of the family.
        blocks: Class names of the repeated blocks; found by name, so that nothing is imported.
        linears: Last parts of the names of the linears in a block that may be pruned.
        head: Last parts of the names of output layers, left dense with the embeddings.
        hidden: Keyword of the hidden states, if they are not the first positional argument.
        fusable: Which of the blocks are what ``nn.FusedDecoder`` computes: RMS norm, q, k and v, halves
            rotated, attention, o, RMS norm, MLP gated by SiLU, both residuals.
        stacks: Class names of what is an embedding, such blocks and an RMS norm: ``nn.FusedStack``.
    """

    name: str
    blocks: tuple[str, ...]
    linears: tuple[str, ...]
    head: tuple[str, ...] = ("lm_head",)
    hidden: str = "hidden_states"
    fusable: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()

    def find_blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """Blocks by module path, in the order they run."""
        return {n: m for n, m in model.named_modules() if type(m).__name__ in self.blocks}


GATED_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

EXPERT = ("gate_up", "up", "down")
"""Linears of an expert (``nn.SparseExperts``)."""

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
"""What the linears of GATED_MLP are for, in its order."""


def role_of(family: Family, name: str) -> str:
    """What the linear of that module path is for; "" where the family has other parts."""
    if family.linears != GATED_MLP:
        return ""
    last = name.rpartition(".")[2]
    return ROLES[GATED_MLP.index(last)] if last in GATED_MLP else ""
