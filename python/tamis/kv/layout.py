"""A past that holds what a fixed pattern of blocks still shows to later queries, per KV head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tamis.kv.past import Tail
from tamis.kv.ragged import Ragged
from tamis.policy.kv_layout import Layout, prompt_blocks, still_seen, token_mask

_ROWS = 256  # queries whose mask exists at a time


class LayoutPast(Ragged):
    """Drops a block of a head as soon as the head's pattern hides it from all later queries."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def prefill(self, tail: Tail) -> Tensor | None:
        """Attention [b, h, n, d] of a prompt along the pattern."""
        if tail.q is None:
            return None
        b, h, n, _ = tail.q.shape
        g = tail.keys.shape[1]
        out = torch.empty_like(tail.q)
        for i in range(b):
            place = torch.arange(n) - (0 if tail.pad is None else int(tail.pad[i]))
            blocks = prompt_blocks(self.layout, g, int(place[-1]) + 1)
            for at in torch.split(torch.arange(n), _ROWS):
                upto = int(at[-1]) + 1
                mask = token_mask(blocks, self.layout.block, place[at], place[:upto])
                out[i, :, at] = scaled_dot_product_attention(
                    tail.q[i, None, :, at],
                    tail.keys[i, None, :, :upto],
                    tail.values[i, None, :, :upto],
                    attn_mask=mask.repeat_interleave(h // g, 0).unsqueeze(0),
                    scale=tail.scale,
                    enable_gqa=True,
                )[0].nan_to_num(0.0)
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
            real[i] &= still_seen(self.layout, places, tail.begin + n - pad)
        self.hold(parts, real)
        return n
