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
    ranked = _ranked(score, sink, recent, first)
    return ranked.topk(min(budget, score.shape[-1]), dim=-1).indices.sort(dim=-1).values


def shared_tokens(
    score: Tensor,
    budget: int,
    *,
    floor: float,
    sink: int = 0,
    recent: int = 0,
    first: Tensor | None = None,
) -> Tensor:
    """Which tokens stay, [b, g, s] bool, where the heads of a layer compete for g * ``budget``.

    The best ``floor * budget`` of each head stay; the rest goes to the largest scores of any head
    (Feng et al. 2024, Ada-KV, arXiv:2407.11550, algorithm 1 with its safeguard).

    Args:
        score: [b, g, s]; comparable between heads, as sums of attention are.
        budget: Tokens per head on average, sink and recent ones included.
        floor: Share of ``budget`` that each head has for itself.
        sink: First tokens that always stay.
        recent: Last tokens that always stay.
        first: First real token of each sequence, [b] or [b, g]; those before never stay.
    """
    b, g, s = score.shape
    ranked = _ranked(score, sink, recent, first)
    own = min(s, max(int(floor * budget), sink + recent))
    best = ranked.topk(own, dim=-1).indices
    ranked = torch.where(ranked == float("-inf"), ranked, ranked.scatter(-1, best, float("inf")))
    chosen = ranked.view(b, g * s).topk(min(g * budget, g * s), dim=-1).indices
    keep = torch.zeros_like(ranked.view(b, g * s), dtype=torch.bool).scatter_(-1, chosen, True)
    return keep.view(b, g, s) & (ranked > float("-inf"))


def covering_count(mass: Tensor, top_p: float) -> Tensor:
    """Fewest tokens [b] whose masses [b, s] sum to ``top_p`` of all (ZipVL, arXiv:2410.08584, eq. 5)."""
    sums = mass.sort(dim=-1, descending=True).values.double().cumsum(-1)
    short = sums < top_p * sums[:, -1:] - 1e-9 * sums[:, -1:]
    return (short.sum(-1) + 1).clamp(max=mass.shape[-1])


def important_tokens(
    mass: Tensor, seen_by: Tensor, *, top_p: float, share: float, recent: int
) -> Tensor:
    """Important tokens [b, s] bool: the best by attention per probe that could see them.

    How many: as many as cover ``top_p`` of the attention, or ``share`` of all where ``top_p`` is 0.

    Args:
        mass: Attention from the probes, [b, s]; padding has none.
        seen_by: Probes that can see each token, [b, s].
        top_p: Share of attention.
        share: Share of tokens.
        recent: Latest tokens, important at any rate.
    """
    b, s = mass.shape
    if top_p >= 1 or share >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    count = covering_count(mass, top_p) if top_p else mass.new_full((b,), round(share * s))
    score = mass / seen_by.clamp(min=1)
    score[:, s - recent :] = float("inf")
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < count.clamp(min=recent).unsqueeze(-1)


def _ranked(score: Tensor, sink: int, recent: int, first: Tensor | None) -> Tensor:
    """The scores, +inf for tokens that are always taken, -inf for padding."""
    s = score.shape[-1]
    place = torch.arange(s, device=score.device)
    start = score.new_zeros(1, 1) if first is None else first.view(first.shape[0], -1)
    offset = place - start.unsqueeze(-1)
    forced = ((offset >= 0) & (offset < sink)) | (place >= s - recent)
    return score.masked_fill(forced, float("inf")).masked_fill(offset < 0, float("-inf"))
