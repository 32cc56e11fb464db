"""Which of a store's tokens leave for good, where every KV head keeps as many as the others."""

from __future__ import annotations

from torch import Tensor

from tamis.kv.rows import Rows, indices
from tamis.ops.kv_select import kv_mass
from tamis.policy.kv_budget import top_tokens
from tamis.policy.kv_recipe import EVERY_QUERY, Evict, KvContext


def kept(
    rows: dict[str, Rows],
    how: Evict,
    budget: int,
    q: Tensor | None,
    *,
    scale: float | None,
    first: Tensor | None,
) -> Tensor | None:
    """Tokens that stay, [b, g, budget]; None where all do.

    Where all queries count, ``rows`` holds the attention that tokens got so far as ``mass``.

    Args:
        rows: ``keys`` and ``positions`` of the tokens.
        how: What is kept.
        budget: Tokens per KV head.
        q: Queries [b, h, n, d] of the latest n tokens; None where nothing was asked.
        scale: Of the scores; 1 / sqrt(d) by default.
        first: First token of each head that is not padding, [b, g].
    """
    if q is None and how.queries != 0:
        return None
    leaves = rows["keys"].count > budget and (how.always or q is None or q.shape[2] > 1)
    if not leaves and how.queries != EVERY_QUERY:
        return None
    mass = None if q is None or how.queries == 0 else _mass(rows, how, q, scale, first)
    if not leaves:
        return None
    context = KvContext(rows["keys"].view, rows["positions"].view, mass)
    return top_tokens(how.score(context), budget, sink=how.sink, recent=how.recent, first=first)


def _mass(
    rows: dict[str, Rows], how: Evict, q: Tensor, scale: float | None, first: Tensor | None
) -> Tensor:
    """Attention [b, g, s] that tokens got from the queries that count."""
    keys = rows["keys"].view
    begin = None if first is None else indices(first).contiguous()
    if how.queries != EVERY_QUERY:
        return kv_mass(q[:, :, -how.queries :], keys, scale=scale, begin=begin)
    mass = kv_mass(q, keys, scale=scale, begin=begin)
    if "mass" not in rows:
        rows["mass"] = Rows(mass)
        return mass
    total = rows["mass"]
    total.extend(mass.shape[2] - total.count).zero_()
    total.view.add_(mass)
    return total.view
