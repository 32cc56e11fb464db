"""Importance of cached tokens, [b, g, s]; larger is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tamis.errors import TamisValueError

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.policy.kv_recipe import KvContext, Probes


def recency(ctx: KvContext) -> Tensor:
    """The token's position: the latest stay."""
    return ctx.positions.float()


def key_norm(ctx: KvContext) -> Tensor:
    """-|k|: keys of small norm draw attention (arXiv:2406.11430, sec. 3)."""
    norm: Tensor = torch.linalg.vector_norm(ctx.keys.float(), dim=-1)
    return -norm


def attention(ctx: KvContext) -> Tensor:
    """Attention received from the observed queries.

    Raises:
        TamisValueError: None were observed.
    """
    if ctx.mass is None:
        raise TamisValueError(
            "kv_score.attention: mass: got None, wanted observed queries; set queries of Evict."
        )
    return ctx.mass


@dataclass(frozen=True)
class PooledAttention:
    """Attention received, averaged over ``width`` neighbouring tokens, so that clusters stay whole."""

    width: int = 5

    def __call__(self, ctx: KvContext) -> Tensor:
        """The score of each token."""
        mass = attention(ctx)
        pooled = torch.nn.AvgPool1d(self.width, 1, self.width // 2, count_include_pad=False)
        out: Tensor = pooled(mass)
        return out


@dataclass(frozen=True)
class GlobalLocal:
    """Attention received from all queries or from the latest, whichever says more.

    From all: per query that can see the token. From the latest: averaged over ``width`` neighbours.
    The first is brought to the mean of the second; the larger counts (Li et al. 2024, EMS,
    arXiv:2412.08521: global-local score).
    """

    width: int = 5

    def __call__(self, ctx: KvContext) -> Tensor:
        """The score of each token."""
        if ctx.local is None:
            raise TamisValueError(
                "kv_score.GlobalLocal: local: got None, wanted observed queries; set local of Evict."
            )
        pooled = torch.nn.AvgPool1d(self.width, 1, self.width // 2, count_include_pad=False)
        local: Tensor = pooled(ctx.local)
        seen_by = (ctx.positions.amax(-1, keepdim=True) - ctx.positions + 1).float()
        spread = attention(ctx) / seen_by
        level = local.mean(-1, keepdim=True) / spread.mean(-1, keepdim=True).clamp(min=1e-12)
        return torch.maximum(local, spread * level)


def probe_rows(n: int, probes: Probes) -> Tensor:
    """Ascending rows of n queries that are probes: the latest and some others, drawn by a seed."""
    recent, random = (int(x * n) if x < 1 else int(x) for x in (probes.recent, probes.random))
    recent = min(n, max(1, recent))
    draw = torch.Generator().manual_seed(probes.seed)
    others = torch.randperm(n - recent, generator=draw)[:random].sort().values
    return torch.cat([others, torch.arange(n - recent, n)])


def probe_mass(
    q: Tensor, keys: Tensor, rows: Tensor, scale: float, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention that each token got from probes, summed over them and all heads, and who could see it.

    Returns:
        Mass [b, s] f32, and the number of probes at or behind each token, [b, s].

    Args:
        q: [b, h, n, d], of the latest n of s tokens.
        keys: [b, g, s, d].
        rows: Which queries are probes, ascending.
        scale: Of the scores.
        visible: [b, s] bool; false for padding.
    """
    b, h, n, d = q.shape
    g, s = keys.shape[1], keys.shape[2]
    probes = q[:, :, rows].float().view(b, g, h // g, len(rows), d)
    columns = keys.float().transpose(-1, -2).unsqueeze(2)
    mass = torch.zeros(b, s)
    before = torch.arange(s) <= (rows + s - n).unsqueeze(1)
    for at in torch.split(torch.arange(len(rows)), 32):
        scores = (probes[:, :, :, at] @ columns).mul_(scale)
        seen = before[at] & visible[:, None, None, None, :]
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1).nan_to_num_(0.0)
        mass += weights.sum((1, 2, 3))
    return mass, before.sum(0).expand(b, s)


def attention_mass(q: Tensor, keys: Tensor, scale: float, visible: Tensor) -> Tensor:
    """Attention that the tokens of ``keys`` get from the last queries, [b, g, s] f32.

    Queries are taken 64 at a time, so no n x s matrix of all of them ever exists.

    Args:
        q: [b, h, n, d]; query i sees all but the last n - 1 - i tokens.
        keys: [b, g, s, d].
        scale: Of the scores.
        visible: [b, g, s] bool; false for padding.
    """
    b, h, n, d = q.shape
    g, s = keys.shape[1], keys.shape[2]
    rows = q.float().view(b, g, h // g, n, d)
    columns = keys.float().transpose(-1, -2).unsqueeze(2)
    mass = torch.zeros(b, g, s)
    place = torch.arange(s)
    for first in range(0, n, 64):
        part = rows[:, :, :, first : first + 64]
        scores = (part @ columns).mul_(scale)
        last = torch.arange(first, first + part.shape[3]) + (s - n)
        seen = (place <= last.unsqueeze(1)) & visible[:, :, None, None, :]
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1).nan_to_num_(0.0)
        mass += weights.mean(2).sum(2)
    return mass
