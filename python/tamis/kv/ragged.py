"""A past in which every KV head holds its own number of tokens, without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.kv.past import Past, Tail
from tamis.kv.rows import Rows
from tamis.ops.attention import DenseSegment, Lists, Segment
from tamis.ops.kv_edit import Similar, Tokens, merge_tokens
from tamis.ops.kv_select import kv_mass
from tamis.policy.kv_budget import shared_tokens, top_tokens
from tamis.policy.kv_recipe import EVERY_QUERY, Evict, KvContext, Merge


class Ragged(Past):
    """Tokens of all heads one after another; a head reads its own range of them.

    Attributes:
        rows: ``pool_keys``, ``pool_values`` [b, 1, total, d], ``pool_positions`` and, where tokens
            were merged, ``bias`` [b, 1, total]; ``begin`` and ``end`` [b, g, 1] of each head.
    """

    @property
    def tokens(self) -> int:
        """Tokens held per KV head, the mean rounded up."""
        lengths = self.lengths
        return 0 if lengths is None else -(-int(lengths.sum()) // lengths.numel())

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of each head, [b, g]; None before there are any."""
        if not self.rows:
            return None
        return (self.rows["end"].view - self.rows["begin"].view).squeeze(-1)

    def segments(self, q: Tensor, scale: float) -> list[Segment]:
        """The pool, of which each head reads its range."""
        if not self.rows:
            return []
        begin, end = self.rows["begin"].view.squeeze(-1), self.rows["end"].view.squeeze(-1)
        b, g = begin.shape
        keys, values = (
            self.rows[x].view.expand(b, g, -1, -1) for x in ("pool_keys", "pool_values")
        )
        bias = self.rows["bias"].view.expand(b, g, -1) if "bias" in self.rows else None
        return [DenseSegment(keys, values, Lists(begin=begin, end=end, bias=bias))]

    def with_tail(self, tail: Tail) -> tuple[dict[str, Tensor], Tensor]:
        """All tokens, aligned at their ends, by name [b, g, s, ...], and which of them are real."""
        parts = {"pool_keys": tail.keys, "pool_values": tail.values}
        parts["pool_positions"] = tail.positions
        if "bias" in self.rows:
            parts["bias"] = torch.zeros(tail.positions.shape, device=tail.keys.device)
        real = tail.positions >= (0 if tail.pad is None else tail.pad.view(-1, 1, 1))
        lengths = self.lengths
        if lengths is None:
            return parts, real
        most = int(lengths.max())
        places = torch.arange(most, device=lengths.device)
        place = places - (most - lengths).unsqueeze(-1)  # below 0: no token
        index = (place + self.rows["begin"].view).clamp(min=0).long()
        for name, new in parts.items():
            rows = self.rows[name].view.expand(-1, index.shape[1], *[-1] * (new.dim() - 2))
            at = index.view(*index.shape, *[1] * (new.dim() - 3)).expand(
                *index.shape, *new.shape[3:]
            )
            parts[name] = torch.cat([rows.gather(2, at), new], 2)
        return parts, torch.cat([place >= 0, real], 2)

    def hold(self, parts: dict[str, Tensor], keep: Tensor) -> None:
        """Makes the pool anew of the tokens where ``keep`` [b, g, s] is true."""
        counts = keep.sum(-1)
        end = counts.cumsum(-1).to(torch.int32)
        self.rows = {
            name: Rows(_packed(x, keep, int(end[:, -1].max()))) for name, x in parts.items()
        }
        self.rows["begin"] = Rows((end - counts.to(torch.int32)).unsqueeze(-1))
        self.rows["end"] = Rows(end.unsqueeze(-1))


def _packed(x: Tensor, keep: Tensor, total: int) -> Tensor:
    """[b, 1, total, ...]: of each sequence, the kept tokens of head 0, of head 1 and so on."""
    out = x.new_zeros(x.shape[0], 1, total, *x.shape[3:])
    for i in range(x.shape[0]):
        kept = x[i][keep[i]]
        out[i, 0, : len(kept)] = kept
    return out


class SharedBudget(Ragged):
    """Evicts where the heads of a layer share its budget, or where what leaves is merged."""

    def __init__(self, how: Evict, budget: int) -> None:
        super().__init__()
        self.how, self.budget = how, budget

    def absorb(self, tail: Tail) -> int:
        """After a prompt that makes more tokens than the budget: the best of all tokens stay."""
        how = self.how
        if tail.q is None and how.queries != 0:
            return 0
        if self.tokens + tail.keys.shape[2] <= self.budget or not (how.always or tail.fresh):
            return 0
        parts, real = self.with_tail(tail)
        context = self._context(parts, real, tail)
        first = (~real).sum(-1)
        score = how.score(context).masked_fill(~real, float("-inf"))
        if how.floor is None:
            chosen = top_tokens(score, self.budget, sink=how.sink, recent=how.recent, first=first)
            keep = torch.zeros_like(real).scatter_(-1, chosen, True) & real
        else:
            keep = shared_tokens(
                score, self.budget, floor=how.floor, sink=how.sink, recent=how.recent, first=first
            )
        if how.merge is not None:
            _merge(how.merge, parts, keep, score)
        self.hold(parts, keep)
        return tail.keys.shape[2]

    def _context(self, parts: dict[str, Tensor], real: Tensor, tail: Tail) -> KvContext:
        begin = (~real).sum(-1).to(torch.int32)  # what is not real comes first
        masses: list[Tensor | None] = []
        for count in (self.how.queries, self.how.local):
            q = tail.q
            if count == 0 or q is None:
                masses.append(None)
                continue
            last = q if count == EVERY_QUERY else q[:, :, -count:]
            masses.append(kv_mass(last, parts["pool_keys"], scale=tail.scale, begin=begin))
        return KvContext(parts["pool_keys"], parts["pool_positions"], *masses)


def _merge(how: Merge, parts: dict[str, Tensor], keep: Tensor, score: Tensor) -> None:
    """Merges the next best tokens of each head into those that stay, in ``parts``.

    As ``policy.kv_edit.merge_values`` does for one head.
    """
    values = parts["pool_values"]
    bias = parts.get("bias", torch.zeros_like(score))
    rest = score.masked_fill(keep, float("-inf"))
    rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    count = (how.candidates * keep.sum(-1, keepdim=True)).long()
    joins = _listed((rank < count) & (rest > float("-inf")))
    weight = (score.clamp(min=0) * bias.exp()).clamp(min=1e-12).contiguous()
    kept = _listed(keep)
    merged = merge_tokens(
        parts["pool_keys"], values, kept, joins, Similar(how.above), weight=weight
    )
    into, own = kept.index.long(), weight.gather(2, kept.index.long())
    brought = torch.where(merged.joined >= 0, weight.gather(2, joins.index.long()), 0.0)
    total = own.scatter_add(2, merged.joined.clamp(min=0).long(), brought)
    # places past a head's count are of tokens that do not stay
    wide = into.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])
    parts["pool_values"] = values.scatter(2, wide, merged.values)
    parts["bias"] = bias.scatter_add(2, into, (total / own).log())


def _listed(mask: Tensor) -> Tokens:
    """The tokens of a mask [b, g, s], ascending per head."""
    count = mask.sum(-1)
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    index = order[..., : int(count.max())].to(torch.int32).contiguous()
    return Tokens(index, count.to(torch.int32))
