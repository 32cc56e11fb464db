"""Attention of the latest steps, per token: what ALISA's sparse window attention chooses by."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.kv.rows import Rows
from tamis.ops.kv_select import kv_mass
from tamis.policy.kv_recipe import WindowSum


class Window:
    """Sums of attention over the latest steps, in ``slots`` parts, of which the oldest leaves at once.

    ``sums`` [b, 1, s, slots] f32 of each token, over all heads. The window is half of what a step reads.
    """

    def __init__(self, how: WindowSum) -> None:
        self.how = how
        self.slot = self.steps = 0  # the part that is being filled, and steps in it
        # what the latest step read, tokens [b, g, k] and how many [b, g]; None: all
        self.read: tuple[Tensor, Tensor] | None = None

    def totals(self, rows: dict[str, Rows], tokens: int) -> Tensor:
        """Attention that each of ``tokens`` tokens got within the window, [b, 1, s]."""
        held = rows["sums"]
        held.extend(tokens - held.count).zero_()
        return held.view.sum(-1)

    def observe(
        self,
        rows: dict[str, Rows],
        q: Tensor,
        keys: Tensor,
        window: int,
        begin: Tensor | None,
        scale: float | None = None,
    ) -> None:
        """Adds the attention of queries q [b, h, n, d], the latest of keys [b, g, s, d].

        Args:
            rows: Where ``sums`` is held.
            q: Queries.
            keys: All keys.
            window: Steps of the whole window.
            begin: First token of each head that is not padding, [b, g] int32.
            scale: Of the scores; 1 / sqrt(d) by default.
        """
        b, _, s, _ = keys.shape
        if "sums" not in rows:
            rows["sums"] = Rows(torch.zeros(b, 1, 0, self.how.slots, device=q.device))
        held = rows["sums"]
        held.extend(s - held.count).zero_()
        each = max(1, window // self.how.slots)
        n = q.shape[2]
        first = max(0, n - each * self.how.slots)
        while first < n:
            if self.steps >= each:
                self.slot, self.steps = (self.slot + 1) % self.how.slots, 0
                held.view[..., self.slot] = 0
            more = min(each - self.steps, n - first)
            part, upto = q[:, :, first : first + more], keys[:, :, : s - n + first + more]
            self._add(held.view[:, 0, :, self.slot], part, upto, begin, scale)
            self.steps += more
            first += more

    def _add(
        self, sums: Tensor, q: Tensor, keys: Tensor, begin: Tensor | None, scale: float | None
    ) -> None:
        if self.read is None or q.shape[2] > 1:
            sums[:, : keys.shape[2]] += kv_mass(q, keys, scale=scale, begin=begin).sum(1)
            return
        for i, (index, count) in enumerate(zip(*self.read, strict=True)):
            read = index[:, : int(count[0])].long().unsqueeze(0)  # alike in all heads
            wide = read.unsqueeze(-1).expand(-1, -1, -1, keys.shape[3])
            mass = kv_mass(q[i : i + 1], keys[i : i + 1].gather(2, wide), scale=scale)
            sums[i].scatter_add_(0, read[0, 0], mass[0].sum(0))
