"""Attention over keys that lie densely: torch's SDPA, or step by step what SDPA has no argument for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def dense_attention(  # noqa: PLR0913
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Attention [b, n, h, d] of queries [b, h, n, d] over keys and values [b, g, s, d].

    Args:
        module: Whose attention it is.
        query: [b, h, n, d].
        key: [b, g, s, d].
        value: [b, g, s, d].
        mask: [b, 1, n, s] bool, true where attention may look; None for the tokens before.
        scaling: Of the scores; 1 / sqrt(d) by default.
        softcap: Scores become softcap * tanh(score / softcap), as in Gemma 2.
        sinks: [h], a score of each head beside those of the keys, for no value, as in gpt-oss.
        kwargs: For SDPA.
    """
    if softcap is None and sinks is None:
        out: Tensor
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
        return out
    b, h, n, d = query.shape
    g, s = key.shape[1:3]
    rows = query.reshape(b, g, h // g, n, d)
    scores = rows @ key.unsqueeze(2).transpose(-1, -2)
    scores = scores * (d**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and n > 1:
        mask = torch.ones(n, s, dtype=torch.bool, device=key.device).tril(s - n)[None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(2), torch.finfo(scores.dtype).min)
    if sinks is not None:
        beside = sinks.to(scores.dtype).view(1, g, -1, 1, 1).expand(b, -1, -1, n, 1)
        scores = torch.cat([scores, beside], -1)
    weights = scores.softmax(-1, torch.float32).to(value.dtype)[..., :s]
    return (weights @ value.unsqueeze(2)).reshape(b, h, n, -1).transpose(1, 2).contiguous()


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Attention [b, h, n, d] with weights that sum to exp(lse [b, h, n]), with sinks [h] beside them."""
    share = torch.sigmoid(lse - sinks.float().view(1, -1, 1))
    return (out * share.unsqueeze(-1)).to(out.dtype)
