"""Selection: which of a dense store's tokens one decode step reads."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.kv.rows import Rows, indices
from tamis.ops.attention import ALL, DenseSegment, Lists, Segment
from tamis.policy.kv_budget import top_tokens
from tamis.policy.kv_estimate import heavy_channels, label_weights, page_bound
from tamis.policy.kv_recipe import Labels, Pages, Select


class Selection:
    """The summaries that a recipe estimates scores from, and the choice they lead to."""

    def __init__(self, how: Select, budget: int | None) -> None:
        self.how, self.budget = how, budget
        self.rows: dict[str, Rows] = {}
        self.channels: Tensor | None = None  # of Labels, [g, r]

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the summaries."""
        return {name: rows.nbytes for name, rows in self.rows.items()}

    def clone(self) -> Selection:
        """An independent copy."""
        copy = Selection(self.how, self.budget)
        copy.rows = {name: rows.clone() for name, rows in self.rows.items()}
        copy.channels = self.channels
        return copy

    def crop(self, tokens: int) -> None:
        """Forgets what summarizes tokens from ``tokens`` on."""
        unit = self.how.by.page if isinstance(self.how.by, Pages) else 1
        for rows in self.rows.values():
            rows.crop(tokens // unit)

    def observe(self, q: Tensor, keys: Tensor) -> None:
        """Fixes the label channels by the first prompt's queries and keys of the same tokens."""
        if isinstance(self.how.by, Labels) and self.channels is None:
            count = max(1, keys.shape[3] // self.how.by.divisor)
            self.channels = heavy_channels(q, keys[:, :, -q.shape[2] :], count)

    def segments(
        self, q: Tensor, keys: Tensor, values: Tensor, first: Tensor | None
    ) -> list[Segment] | None:
        """What to read of keys, values [b, g, s, d] for q [b, h, 1, d]; None for everything."""
        budget = self._budget(keys.shape[2])
        if budget >= keys.shape[2]:
            return None
        if isinstance(self.how.by, Pages):
            return self._by_pages(self.how.by.page, budget, q, (keys, values), first)
        return self._by_labels(budget, q, (keys, values), first)

    def _budget(self, tokens: int) -> int:
        least = self.how.sink + self.how.recent
        return self.budget or max(least, int(self.how.fraction * tokens), 1)

    def _by_labels(
        self, budget: int, q: Tensor, kv: tuple[Tensor, Tensor], first: Tensor | None
    ) -> list[Segment]:
        keys, values = kv
        self.observe(keys[:, :, -1:], keys)  # where no prompt was seen, by the keys alone
        if self.channels is None:
            raise AssertionError("observe fixes the channels")
        held = self.rows["labels"].count if self.rows else 0
        if held < keys.shape[2]:
            new = keys[:, :, held:]
            at = self.channels[None, :, None, :].expand(*new.shape[:3], -1)
            self._append("labels", new.gather(3, at))
        scores = label_weights(q, self.rows["labels"].view, self.channels, keys.shape[3] ** -0.5)
        kept = top_tokens(scores, budget, sink=self.how.sink, recent=self.how.recent, first=first)
        begin = None if first is None else indices(first)
        return [DenseSegment(keys, values, Lists(index=indices(kept), begin=begin))]

    def _by_pages(
        self, page: int, budget: int, q: Tensor, kv: tuple[Tensor, Tensor], first: Tensor | None
    ) -> list[Segment]:
        keys, values = kv
        whole = keys.shape[2] // page
        held = self.rows["low"].count if self.rows else 0
        if held < whole:
            b, g, _, d = keys.shape
            new = keys[:, :, held * page : whole * page].reshape(b, g, whole - held, page, d)
            self._append("low", new.amin(3))
            self._append("high", new.amax(3))
        bound = page_bound(q, self.rows["low"].view, self.rows["high"].view)
        pages = top_tokens(
            bound, max(1, budget // page), first=None if first is None else first // page
        )
        tokens = (pages.unsqueeze(-1) * page + torch.arange(page)).flatten(2)
        begin = None if first is None else indices(first)
        chosen = DenseSegment(keys, values, Lists(index=indices(tokens), begin=begin))
        rest = whole * page  # the latest tokens, which fill no page yet
        if rest == keys.shape[2]:
            return [chosen]
        tail = ALL if begin is None else Lists(begin=(begin - rest).clamp(min=0))
        return [chosen, DenseSegment(keys[:, :, rest:], values[:, :, rest:], tail)]

    def _append(self, name: str, x: Tensor) -> None:
        if name in self.rows:
            self.rows[name].append(x)
        else:
            self.rows[name] = Rows(x)
