"""A past whose keys are a product of few columns before rotation, read by chunks that landmarks choose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tamis.kv.past import Past, Tail
from tamis.kv.rows import Rows, indices
from tamis.ops.attention import ALL, DenseSegment, Lists, LowRankSegment, Segment, key_turns
from tamis.ops.kv_select import KeyRows, kv_estimate, kv_select
from tamis.ops.kv_summary import page_means
from tamis.policy.kv_lowrank import fit, rotate, stray_chunks
from tamis.policy.kv_recipe import LowRank


class LowRankPast(Past):
    """Chunks of a prompt: of those that a step reads the kernel rebuilds the keys; a few odd ones stay.

    Tokens after the first prompt stay in the tail, as they came.

    Attributes:
        rows: ``coordinates`` [b, 1, n, r] and ``basis`` [b, g, r, d], whose product are the keys before
            rotation; ``landmarks`` [b, g, chunks, d] of the ``chunks`` [b, g, chunks] that are not odd;
            ``odd_keys`` and ``odd_values``; ``far_values`` [b, g, n, d] of all; with padding ``pad``.
    """

    def __init__(
        self, how: LowRank, budget: int | None, frequencies: Tensor | None, rank: int | None
    ) -> None:
        super().__init__()
        self.how, self.budget, self.rank = how, budget, rank
        self.frequencies = torch.empty(0) if frequencies is None else frequencies

    @property
    def tokens(self) -> int:
        """Tokens held per KV head."""
        return self.rows["far_values"].count if self.rows else 0

    def absorb(self, tail: Tail) -> int:
        """All whole chunks of the first prompt but the latest ``local`` tokens."""
        how, size = self.how, self.how.chunk
        b, g, n, d = tail.keys.shape
        chunks = (n - how.local) // size
        if self.rows or not tail.fresh or chunks <= 0:
            return 0
        taken = chunks * size
        keys, values = tail.keys[:, :, :taken].contiguous(), tail.values[:, :, :taken].contiguous()
        places = torch.arange(taken, device=keys.device)
        plain = rotate(keys.float(), places, self.frequencies, back=True)
        rank = min(self.rank or max(1, round(how.rank * g * d)), g * d)
        coordinates, basis = fit(plain.transpose(1, 2).flatten(2), rank)
        basis = basis.view(b, rank, g, d).transpose(1, 2)
        if keys.is_cuda:  # whose kernel takes eight columns at a time
            coordinates = functional.pad(coordinates, (0, -rank % 8))
            basis = functional.pad(basis, (0, 0, 0, -rank % 8))
        pages, value_pages = (x.view(b, g, chunks, size, d) for x in (keys, values))
        marks, alike = page_means(keys, size)
        odd, rest = stray_chunks(alike, self._odd(taken) // size)
        held = {
            "coordinates": coordinates.unsqueeze(1).to(keys.dtype),
            "basis": basis.to(keys.dtype),
            "landmarks": _take(marks, rest),
            "chunks": rest.to(torch.int32),
            "odd_keys": _take(pages, odd).flatten(2, 3),
            "odd_values": _take(value_pages, odd).flatten(2, 3),
            "far_values": values,
        }
        self.rows = {name: Rows(x) for name, x in held.items()}
        if tail.pad is not None:
            self.rows["pad"] = Rows(tail.pad.to(torch.int32).view(-1, 1, 1))
            self.rows["odd_places"] = Rows(
                (odd.unsqueeze(-1) * size + torch.arange(size, device=odd.device))
                .flatten(2)
                .to(torch.int32)
            )
        return taken

    def _odd(self, tokens: int) -> int:
        """Tokens of odd chunks."""
        return int(self.how.odd * self._reads(tokens))

    def _reads(self, tokens: int) -> int:
        """Tokens that a step rebuilds."""
        return self.budget or max(self.how.chunk, int(self.how.fraction * tokens))

    def segments(self, q: Tensor, scale: float) -> list[Segment]:
        """The odd chunks, and the chunks whose landmarks draw q most, rebuilt."""
        if not self.rows:
            return []
        size = self.how.chunk
        marks, ids = self.rows["landmarks"].view, self.rows["chunks"].view.long()
        pad = self.rows["pad"].view if "pad" in self.rows else None
        scores = _estimate(q, marks, scale)
        if pad is not None:
            scores.masked_fill_((ids + 1) * size <= pad, float("-inf"))
        count = min(ids.shape[2], max(1, self._reads(self.tokens) // size))
        index = kv_select(scores, count)[0].long()
        each = torch.arange(size, device=index.device)
        places = (ids.gather(2, index).unsqueeze(-1) * size + each).flatten(2)
        values = self.rows["far_values"].view
        begin = None if pad is None else pad.squeeze(-1).expand(-1, values.shape[1]).contiguous()
        chosen = LowRankSegment(
            self.rows["coordinates"].view.squeeze(1),
            self.rows["basis"].view,
            values,
            key_turns(self.frequencies, self.tokens, values.device),
            Lists(index=indices(places), begin=begin),
        )
        made: list[Segment] = [chosen]
        if self.rows["odd_keys"].count:
            hidden = ALL if pad is None else _hidden(self.rows["odd_places"].view, pad)
            odd = self.rows["odd_keys"].view, self.rows["odd_values"].view
            made.append(DenseSegment(*odd, hidden))
        return made


def _estimate(q: Tensor, marks: Tensor, scale: float) -> Tensor:
    """Scores of landmarks [b, g, chunks]; CUDA's kernels take a few query rows at a time."""
    if q.is_cpu:
        return kv_estimate(q, KeyRows(marks), scale=scale)
    step = max(1, 8 * marks.shape[1] // q.shape[1])
    parts = [kv_estimate(x, KeyRows(marks), scale=scale) for x in torch.split(q, step, 2)]
    return torch.stack(parts).amax(0)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [b, g, k] of x [b, g, n, ...]."""
    at = index.view(*index.shape, *[1] * (x.dim() - 3)).expand(*index.shape, *x.shape[3:])
    return x.gather(2, at)


def _hidden(places: Tensor, pad: Tensor) -> Lists:
    """Lists that hide padded tokens by a bias of -inf."""
    bias = torch.zeros(places.shape, device=places.device)
    bias.masked_fill_(places < pad, float("-inf"))
    return Lists(bias=bias)
