"""Selection: which of a dense store's tokens one decode step reads."""

from __future__ import annotations

from copy import copy as copy_of

import torch
from torch import Tensor

from tamis.errors import TamisValueError
from tamis.kv.plan import LayerPlan
from tamis.kv.rows import Rows, indices
from tamis.kv.window import Window
from tamis.ops import kv_select as op
from tamis.ops.attention import ALL, DenseSegment, Lists, Segment
from tamis.ops.chosen import Choice, Unlabelled, at_once
from tamis.ops.kv_summary import page_bounds
from tamis.policy.kv_estimate import heavy_channels
from tamis.policy.kv_recipe import Labels, Pages, Select, WindowSum


class Selection:
    """The summaries that a recipe estimates scores from, and the choice they lead to.

    ``rows`` holds them: ``bounds`` of pages [b, g, pages, 2, d], or ``labels`` of tokens as records.
    """

    def __init__(self, how: Select, budget: int | None, plan: LayerPlan | None = None) -> None:
        self.how, self.budget, self.plan = how, budget, plan
        self.rows: dict[str, Rows] = {}
        self.channels: Tensor | None = None  # of Labels, [g, r] int32
        self._labelled = 0  # tokens that have labels
        self._new: Unlabelled | None = None  # that get theirs where they are read
        self.window = Window(how.by) if isinstance(how.by, WindowSum) else None

    @property
    def labelled(self) -> int:
        """Tokens that have labels."""
        if self._new is not None and self._new.written:
            return self._new.last
        return self._labelled

    @labelled.setter
    def labelled(self, tokens: int) -> None:
        self._labelled, self._new = tokens, None

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the summaries."""
        return {name: rows.nbytes for name, rows in self.rows.items()}

    def clone(self) -> Selection:
        """An independent copy."""
        copy = Selection(self.how, self.budget, self.plan)
        copy.rows = {name: rows.clone() for name, rows in self.rows.items()}
        copy.channels, copy.labelled = self.channels, self.labelled
        copy.window = copy_of(self.window)
        return copy

    def crop(self, tokens: int) -> None:
        """Forgets what summarizes tokens from ``tokens`` on."""
        self.labelled = min(self.labelled, tokens)
        for rows in self.rows.values():
            if isinstance(self.how.by, Pages):
                rows.crop(tokens // self.how.by.page)
            elif self.window is not None:
                rows.crop(tokens)
                self.window.read = None
            else:  # the last record keeps labels that are overwritten before they count
                rows.crop(-(-tokens // op.LABEL_TOKENS))

    def forget(self) -> None:
        """Summaries are made anew, as tokens have moved; the channels stay."""
        self.rows, self.labelled = {}, 0
        if self.window is not None:
            self.window = Window(self.window.how)

    def observe(
        self, q: Tensor, keys: Tensor, first: Tensor | None = None, scale: float | None = None
    ) -> None:
        """Adds to the window; or fixes the channels of labels: the plan's, or by a prompt's own.

        Raises:
            TamisValueError: The plan is of other heads or channels.
        """
        if self.window is not None:
            begin = None if first is None else indices(first).contiguous()
            half = self._budget(keys.shape[2]) // 2
            self.window.observe(self.rows, q, keys, half, begin, scale)
        if not isinstance(self.how.by, Labels) or self.channels is not None:
            return
        count = op.label_channels(keys.shape[3] // self.how.by.divisor)
        if self.plan is None:
            self.channels = indices(
                heavy_channels(q, keys[:, :, -q.shape[2] :].to(q.device), count)
            )
            return
        planned = torch.tensor(self.plan.data, device=q.device)
        if planned.shape != (keys.shape[1], keys.shape[3]):
            raise TamisValueError(
                f"kv.Cache: plan: got channels {list(planned.shape)}, wanted "
                f"{[keys.shape[1], keys.shape[3]]} of this model's KV heads; calibrate it."
            )
        self.channels = indices(planned[:, :count].sort(-1).values).contiguous()

    def segments(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        first: Tensor | None,
        *,
        scale: float | None = None,
        late: bool = False,
    ) -> list[Segment] | None:
        """What to read of keys, values [b, g, s, d] for q [b, h, 1, d]; None for everything.

        scale: of the scores. late: on a CUDA device tokens may be left to choose for the call that reads them.
        """
        budget = self._budget(keys.shape[2])
        self.pass_over()
        if budget >= keys.shape[2]:
            return None
        begin = None if first is None else indices(first).contiguous()
        if isinstance(self.how.by, Pages):
            return self._by_pages(self.how.by.page, budget, q, (keys, values), begin)
        if self.window is not None:
            return self._by_window(self.window, budget, (keys, values), begin)
        labels, how = self._labels(keys, q.device), self.how
        choice = Choice(
            labels, budget, how.sink, how.recent, begin, scale, new=self._new, keys=keys
        )
        if late and keys.is_cuda:
            return [DenseSegment(keys, values, Lists(begin=begin, choice=choice))]
        index, count = choice.lists(q)
        return [DenseSegment(keys, values, Lists(index=index, count=count, begin=begin))]

    def move(self, device: torch.device) -> None:
        """The channels go to a device, as the rows did."""
        if self.channels is not None:
            self.channels = self.channels.to(device)

    def left_out(self, tokens: int) -> int:
        """Of so many tokens those that a step does not read."""
        return max(0, tokens - self._budget(tokens))

    def at_once(self, q: Tensor, keys: Tensor) -> bool:
        """Whether the launch that reads chosen tokens chooses them, for q [b, h, 1, d]."""
        by = self.how.by
        return isinstance(by, Labels) and at_once(
            q, keys, op.label_channels(keys.shape[3] // by.divisor)
        )

    def pass_over(self) -> None:
        """A step read everything."""
        if self.window is not None:
            self.window.read = None

    def _budget(self, tokens: int) -> int:
        least = self.how.sink + self.how.recent
        return self.budget or max(least, int(self.how.fraction * tokens), 1)

    def _labels(self, keys: Tensor, device: torch.device) -> op.Labels:
        """Labels of all keys on the device of queries; of new tokens they are to be written."""
        self.observe(
            keys[:, :, -1:].to(device), keys
        )  # where no prompt was seen, by the keys alone
        if self.channels is None:
            raise AssertionError("observe fixes the channels")
        b, g, s, _ = keys.shape
        records = -(-s // op.LABEL_TOKENS)
        if not self.rows:
            size = op.label_bytes(self.channels.shape[1])
            self.rows["labels"] = Rows(torch.empty(b, g, 0, size, dtype=torch.uint8, device=device))
        held = self.rows["labels"]
        held.extend(records - held.count)
        self.labelled = self.labelled  # with what the last step wrote
        if self.labelled < s:
            self._new = Unlabelled(self.labelled, s)
        return op.Labels(held.view, self.channels, s)

    def _by_window(
        self, window: Window, budget: int, kv: tuple[Tensor, Tensor], begin: Tensor | None
    ) -> list[Segment] | None:
        keys, values = kv
        if "sums" not in self.rows:
            return None
        totals = window.totals(self.rows, keys.shape[2]).expand(-1, keys.shape[1], -1)
        index, count = op.kv_select(
            totals, budget, sink=self.how.sink, recent=budget // 2, begin=begin
        )
        window.read = index, count
        return [DenseSegment(keys, values, Lists(index=index, count=count, begin=begin))]

    def _by_pages(
        self, page: int, budget: int, q: Tensor, kv: tuple[Tensor, Tensor], begin: Tensor | None
    ) -> list[Segment]:
        keys, values = kv
        whole = keys.shape[2] // page
        held = self.rows["bounds"].count if self.rows else 0
        if held < whole:
            new = keys[:, :, held * page : whole * page].to(q.device)
            self._append("bounds", page_bounds(new, page))
        rest = whole * page  # from here on the latest tokens, which fill no page yet
        missing = max(0, self.how.recent - (keys.shape[2] - rest))
        forced = {"sink": -(-self.how.sink // page), "recent": -(-missing // page)}
        index, count = op.kv_choose(
            q,
            op.PageBounds(self.rows["bounds"].view, page),
            max(1, budget // page),
            by_row=self.how.each_head,
            begin=None if begin is None else begin // page,
            **forced,
        )
        chosen = DenseSegment(keys, values, Lists(index=index, count=count, begin=begin))
        if rest == keys.shape[2]:
            return [chosen]
        tail = ALL if begin is None else Lists(begin=(begin - rest).clamp(min=0))
        return [chosen, DenseSegment(keys[:, :, rest:], values[:, :, rest:], tail)]

    def _append(self, name: str, x: Tensor) -> None:
        if name in self.rows:
            self.rows[name].append(x)
        else:
            self.rows[name] = Rows(x)
