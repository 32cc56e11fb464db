"""Which blocks of tokens a block of queries may attend to, per KV head: fixed patterns.

A layout is a value with ``block`` tokens a block and ``blocks(heads, rows, cols)``, [g, m, n] bool for
query blocks ``rows`` [m] and key blocks ``cols`` [n]; causality comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """A block-sparse pattern of attention."""

    @property
    def block(self) -> int:
        """Tokens of a block."""

    def blocks(self, heads: int, rows: Tensor, cols: Tensor) -> Tensor:
        """[heads, m, n] bool."""


@dataclass(frozen=True)
class LocalStride:
    """Latest blocks and every ``stride``-th one; heads are shifted, so that together they see all.

    (j + h * step + 1) mod stride == 0 with step = max(1, stride // heads) (Lin et al. 2024,
    S2-Attention, arXiv:2407.17678).

    Attributes:
        local: Latest blocks, the query's own included.
        stride: Distance of the others.
        block: Tokens of a block.
        dense_heads: Last heads that see everything.
        alike: All heads as the first.
    """

    local: int = 16
    stride: int = 8
    block: int = 64
    dense_heads: int = 0
    alike: bool = False

    def blocks(self, heads: int, rows: Tensor, cols: Tensor) -> Tensor:
        """[heads, m, n] bool."""
        head = torch.arange(heads).view(-1, 1, 1)
        shift = 0 if self.alike else head * max(1, self.stride // heads)
        strided = (cols.view(1, 1, -1) + shift + 1) % self.stride == 0
        local = rows.view(1, -1, 1) - cols.view(1, 1, -1) < self.local
        return strided | local | (head >= heads - self.dense_heads)


@dataclass(frozen=True)
class SinkWindow:
    """First blocks and latest blocks; the window of head h is ``alpha[h] + beta[h] * tokens`` tokens.

    The number of tokens is that up to the last row asked for, so a prompt has one window for all its
    rows and decoding one that grows (Fu et al. 2024, MoA, arXiv:2406.14909, sec. 3).

    Attributes:
        alpha: Tokens, per KV head; one for all heads if a single number.
        beta: Share of the tokens, per KV head.
        sink: First blocks.
        block: Tokens of a block.
    """

    alpha: tuple[float, ...]
    beta: tuple[float, ...] = (0.0,)
    sink: int = 1
    block: int = 64

    def blocks(self, heads: int, rows: Tensor, cols: Tensor) -> Tensor:
        """[heads, m, n] bool."""
        tokens = (int(rows.max()) + 1) * self.block
        window = self.windows(heads, tokens).view(-1, 1, 1)
        near = rows.view(1, -1, 1) - cols.view(1, 1, -1) < window
        return near | (cols.view(1, 1, -1) < self.sink)

    def windows(self, heads: int, tokens: int) -> Tensor:
        """Blocks of each head's window, at least one, [heads]."""
        alpha, beta = torch.tensor(self.alpha), torch.tensor(self.beta)
        return ((alpha + beta * tokens) / self.block).floor().clamp(min=1).expand(heads)


@dataclass(frozen=True)
class AShape:
    """First and latest blocks, the same in all heads.

    Attributes:
        sink: First blocks.
        local: Latest blocks.
        block: Tokens of a block.
        last: Last rows of a prompt that see everything: with it, the tri-shape.
    """

    sink: int = 2
    local: int = 62
    block: int = 64
    last: int = 0

    def blocks(self, heads: int, rows: Tensor, cols: Tensor) -> Tensor:
        """[heads, m, n] bool."""
        i, j = rows.view(1, -1, 1), cols.view(1, 1, -1)
        seen = (j < self.sink) | (i - j < self.local) | (i > int(rows.max()) - self.last)
        return seen.expand(heads, -1, -1)


def prompt_blocks(layout: Layout, heads: int, tokens: int) -> Tensor:
    """The whole pattern of a prompt, [heads, m, m] bool, causal by block."""
    at = torch.arange(-(-tokens // layout.block))
    return layout.blocks(heads, at, at) & (at.view(1, -1) <= at.view(-1, 1))


def compressed_rows(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets [heads, m + 1] and columns [heads, width] int32 of a pattern [heads, m, m] bool."""
    heads, m, _ = blocks.shape
    offsets = torch.zeros(heads, m + 1, dtype=torch.int32)
    offsets[:, 1:] = blocks.sum(-1).cumsum(-1)
    columns = torch.zeros(heads, int(offsets[:, -1].max()), dtype=torch.int32)
    for head, kept in enumerate(blocks):
        found = kept.nonzero()[:, 1].to(torch.int32)
        columns[head, : len(found)] = found
    return offsets, columns


def still_seen(layout: Layout, places: Tensor, tokens: int) -> Tensor:
    """Whether the next query still sees the tokens at ``places`` [g, n] of ``tokens``, [g, n] bool."""
    row = torch.tensor([tokens // layout.block])
    cols = torch.arange(int(row) + 1)
    seen = layout.blocks(len(places), row, cols)[:, 0]
    return seen.gather(1, places.clamp(min=0).long() // layout.block) & (places >= 0)


def density(layout: Layout, heads: int, tokens: int) -> float:
    """Share of the causal block pairs that the layout keeps."""
    kept = prompt_blocks(layout, heads, tokens)
    m = kept.shape[1]
    return 2 * float(kept.sum()) / (heads * m * (m + 1))
