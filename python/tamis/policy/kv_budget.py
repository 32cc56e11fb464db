"""From scores to the tokens that stay or are read: exact top-k with sink and recent tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def top_tokens(
    score: Tensor, budget: int, *, sink: int = 0, recent: int = 0, first: Tensor | None = None
) -> Tensor:
    """Ascending indices [b, g, min(budget, s)] of the largest scores [b, g, s].

    Args:
        score: Larger is taken; ties go to either.
        budget: Tokens per KV head, sink and recent ones included.
        sink: First tokens that are always taken.
        recent: Last tokens that are always taken.
        first: First real token of each sequence, [b] or [b, g]; those before are taken last.
    """
    s = score.shape[-1]
    place = torch.arange(s)
    start = torch.zeros(1, 1) if first is None else first.view(first.shape[0], -1)
    offset = place - start.unsqueeze(-1)
    forced = ((offset >= 0) & (offset < sink)) | (place >= s - recent)
    ranked = score.masked_fill(forced, float("inf")).masked_fill(offset < 0, float("-inf"))
    return ranked.topk(min(budget, s), dim=-1).indices.sort(dim=-1).values
