"""A past of two classes of tokens: important ones in more bits than the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.kv.past import Past, Tail
from tamis.kv.rows import Rows
from tamis.ops.attention import ALL, DenseSegment, Lists, PageSegment, Segment
from tamis.ops.kv_quantize import kv_quantize, page_layout
from tamis.ops.kv_select import kv_mass
from tamis.ops.prefill import Pattern, Subset, prefill_attention
from tamis.policy.kv_budget import important_tokens
from tamis.policy.kv_recipe import Classes, Probes
from tamis.policy.kv_score import probe_rows

_LATEST = Probes(recent=1, random=0)


class TwoClasses(Past):
    """Whole pages of tokens of one class; the class of a token is the same in all heads.

    Attributes:
        rows: ``important`` and ``others`` as records [b, g, pages, nbytes] or, in 16 bits, their
            ``_keys`` and ``_values``; with padding ``_begin`` of each, [b, g, 1].
    """

    def __init__(self, how: Classes) -> None:
        super().__init__()
        self.how = how
        self._chosen: Tensor | None = None  # important tokens of the prompt that was just read

    @property
    def tokens(self) -> int:
        """Tokens held per KV head."""
        held = 0
        for name, rows in self.rows.items():
            if name.endswith("_keys"):
                held += rows.count
            elif name in ("important", "others"):
                held += rows.count * self.how.page
        return held

    def prefill(self, tail: Tail) -> Tensor | None:
        """Attention [b, h, n, d] of a prompt among its important tokens, 0 for the others.

        Rows of other tokens keep what the residual stream carries. None: attention is dense.
        """
        if not self.how.sparse_prefill or tail.q is None:
            return None
        self._chosen = self._important(tail)
        count = self._chosen.sum(-1).to(torch.int32)
        ranked = self._chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        which = Subset(ranked[:, : int(count.max())].to(torch.int32).contiguous(), count)
        limits = Pattern(rows=which, columns=which)
        return prefill_attention(tail.q, tail.keys, tail.values, limits, scale=tail.scale)[0]

    def absorb(self, tail: Tail) -> int:
        """Whole pages of a prompt, or of ``every`` generated tokens."""
        n = tail.keys.shape[2]
        taken = n // self.how.page * self.how.page
        chosen, self._chosen = self._chosen, None
        if tail.q is None or taken == 0 or not (tail.fresh or n >= self.how.every):
            return 0
        if chosen is None or chosen.shape[1] != n:
            chosen = self._important(tail)
        chosen = chosen[:, :taken]
        most = -(-int(chosen.sum(-1).max()) // self.how.page) * self.how.page
        rank = self._rank[:, :taken].masked_fill(chosen, float("inf"))
        order = rank.argsort(dim=-1, descending=True, stable=True)
        first = (
            order.new_zeros(len(order))
            if tail.pad is None
            else (tail.pad - tail.begin).clamp(min=0)
        )
        for name, index, bits in (
            ("important", order[:, :most], self.how.bits),
            ("others", order[:, most:], self.how.other_bits),
        ):
            if bits and index.shape[1]:
                at = index.sort(-1).values
                self._hold(name, tail, at, bits)
                if bool(first.any()):
                    self._begin(name, (at < first.unsqueeze(-1)).sum(-1), tail.keys.shape[1])
        return taken

    def _important(self, tail: Tail) -> Tensor:
        """[b, n] bool of the tail's tokens; leaves the scores that rank them."""
        q, keys = tail.q, tail.keys
        if q is None:
            raise AssertionError("asked only where there are queries")
        n = keys.shape[2]
        probes = self.how.probes if tail.fresh else _LATEST
        rows = probe_rows(q.shape[2], probes)
        real = tail.positions[:, 0] >= (0 if tail.pad is None else tail.pad.view(-1, 1))
        group, places = (
            q.shape[1] // keys.shape[1],
            (rows + n - q.shape[2]).to(q.device, torch.int32),
        )
        begin = (~real).sum(-1, dtype=torch.int32)  # padding comes first
        mass = group * kv_mass(
            q[:, :, rows],
            keys,
            scale=tail.scale,
            positions=places,
            begin=begin.unsqueeze(-1).expand(-1, keys.shape[1]).contiguous(),
        ).sum(1)
        # probes at or behind each token
        seen_by = len(places) - torch.searchsorted(
            places, torch.arange(n, dtype=torch.int32, device=q.device)
        )
        seen_by = seen_by.expand_as(mass)
        self._rank = (mass / seen_by.clamp(min=1)).masked_fill(~real, -1.0)
        recent = int((rows >= q.shape[2] - self._recent(probes, q.shape[2])).sum())
        return important_tokens(
            mass, seen_by, top_p=self.how.top_p, share=self.how.share, recent=min(recent, n)
        )

    def _recent(self, probes: Probes, n: int) -> int:
        return int(probes.recent * n) if probes.recent < 1 else int(probes.recent)

    def _hold(self, name: str, tail: Tail, at: Tensor, bits: int) -> None:
        """Adds tokens ``at`` [b, k] of the tail to a class."""
        b, g, _, d = tail.keys.shape
        index = at[:, None, :, None].expand(b, g, -1, d)
        keys, values = tail.keys.gather(2, index), tail.values.gather(2, index)
        if bits >= 16:
            for part, x in ((f"{name}_keys", keys), (f"{name}_values", values)):
                self._append(part, x)
            return
        layout = page_layout(d, bits, bits, self.how.page, d)
        pages = at.shape[1] // self.how.page
        records = keys.new_empty(b, g, pages, layout.nbytes, dtype=torch.uint8)
        kv_quantize(keys, values, layout, records)
        self._append(name, records)

    def _append(self, name: str, x: Tensor) -> None:
        if name in self.rows:
            self.rows[name].append(x)
        else:
            self.rows[name] = Rows(x)

    def _begin(self, name: str, hidden: Tensor, g: int) -> None:
        """Padded tokens of a class come first in it; there are none in later blocks."""
        if f"{name}_begin" not in self.rows:
            begin = hidden.to(torch.int32).view(-1, 1, 1).expand(-1, g, 1)
            self.rows[f"{name}_begin"] = Rows(begin)

    def segments(self, q: Tensor, scale: float) -> list[Segment]:
        """Both classes, whole."""
        made: list[Segment] = []
        d = q.shape[-1]
        for name, bits in (("important", self.how.bits), ("others", self.how.other_bits)):
            lists = ALL
            if f"{name}_begin" in self.rows:
                lists = Lists(begin=self.rows[f"{name}_begin"].view.squeeze(-1))
            if name in self.rows:
                layout = page_layout(d, bits, bits, self.how.page, d)
                made.append(PageSegment(self.rows[name].view, layout, lists))
            elif f"{name}_keys" in self.rows:
                keys, values = (self.rows[f"{name}_{x}"].view for x in ("keys", "values"))
                made.append(DenseSegment(keys, values, lists))
        return made
