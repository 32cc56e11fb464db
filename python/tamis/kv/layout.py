"""A past that holds what a fixed pattern of blocks still shows to later queries, per KV head."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.kv.past import Tail
from tamis.kv.ragged import Ragged
from tamis.ops.prefill import Blocks, Pattern, prefill_attention
from tamis.policy.kv_layout import Layout, compressed_rows, prompt_blocks, still_seen


class LayoutPast(Ragged):
    """Drops a block of a head as soon as the head's pattern hides it from all later queries."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def prefill(self, tail: Tail) -> Tensor | None:
        """Attention [b, h, n, d] of a prompt along the pattern."""
        if tail.q is None:
            return None
        out = torch.zeros_like(tail.q)
        for i in range(len(out)):  # blocks are counted from the first real token
            first = 0 if tail.pad is None else int(tail.pad[i])
            q, k, v = (x[i : i + 1, :, first:] for x in (tail.q, tail.keys, tail.values))
            if not q.shape[2]:
                continue
            seen = prompt_blocks(self.layout, k.shape[1], q.shape[2])
            offsets, columns = compressed_rows(seen)
            blocks = Blocks(self.layout.block, offsets.to(q.device), columns.to(q.device))
            found = prefill_attention(q, k, v, Pattern(blocks=blocks), scale=tail.scale)
            out[i : i + 1, :, first:] = found[0]
        return out

    def absorb(self, tail: Tail) -> int:
        """Whenever a block of new tokens is full: drops what the next query's row does not show."""
        n = tail.keys.shape[2]
        if n < self.layout.block:
            return 0
        parts, real = self.with_tail(tail)
        for i in range(len(real)):
            pad = 0 if tail.pad is None else int(tail.pad[i])
            places = parts["pool_positions"][i] - pad
            seen = still_seen(self.layout, places.cpu(), tail.begin + n - pad)
            real[i] &= seen.to(real.device)
        self.hold(parts, real)
        return n
