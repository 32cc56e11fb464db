"""Cheap estimates of attention scores, from summaries that are smaller than the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def page_bound(q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Upper bound of q . k over the keys of each page, [b, g, pages]: the largest of a group's heads.

    sum_c max(q_c low_c, q_c high_c) (Tang et al. 2024, Quest, sec. 3.3), as two products.

    Args:
        q: [b, h, 1, d].
        low: Smallest key of each channel, [b, g, pages, d].
        high: Largest key of each channel, [b, g, pages, d].
    """
    rows = _by_group(q, low.shape[1]).to(low.dtype)
    bound = rows.clamp(min=0) @ high.transpose(-1, -2) + rows.clamp(max=0) @ low.transpose(-1, -2)
    return bound.float().amax(2)


def label_weights(q: Tensor, labels: Tensor, channels: Tensor, scale: float) -> Tensor:
    """Softmax of q . k over the label channels, [b, g, s]: the largest of a group's heads.

    Weights, unlike scores, mean the same in every head of a group.

    Args:
        q: [b, h, 1, d].
        labels: Keys at those channels, [b, g, s, r].
        channels: [g, r] int64.
        scale: Of the scores.
    """
    rows = _by_group(q, labels.shape[1])
    chosen = rows.gather(-1, channels[None, :, None, :].expand(*rows.shape[:3], -1))
    scores = (chosen.to(labels.dtype) @ labels.transpose(-1, -2)).float() * scale
    return scores.softmax(-1).amax(2)


def heavy_channels(q: Tensor, keys: Tensor, count: int) -> Tensor:
    """Channels [g, count] where a token's |q_c k_c| with itself is largest on average.

    Yang et al. 2024 (arXiv:2408.07092), sec. 3.1; |q k| summed over a group's query heads.

    Args:
        q: [b, h, n, d].
        keys: [b, g, n, d], of the same tokens.
        count: Channels per KV head.
    """
    return channel_weights(q, keys).topk(count, dim=-1).indices.sort(-1).values


def channel_weights(q: Tensor, keys: Tensor) -> Tensor:
    """Mean |q_c k_c| of a token with itself, summed over a group's query heads, [g, d] f32."""
    b, h, n, d = q.shape
    g = keys.shape[1]
    rows = q.reshape(b, g, h // g, n, d).abs().float().sum(2)
    return (rows * keys.abs().float()).mean((0, 2))


def _by_group(q: Tensor, g: int) -> Tensor:
    """[b, g, h / g, d] of one query token's heads."""
    b, h, _, d = q.shape
    return torch.reshape(q, (b, g, h // g, d))
