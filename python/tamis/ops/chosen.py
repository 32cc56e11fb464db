"""Attention to tokens that the call itself chooses, by labels: on a GPU in one launch where it can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis import _C
from tamis.ops import cuda_kv
from tamis.ops import kv_select as op


@dataclass
class Unlabelled:
    """Tokens ``first`` to ``last`` - 1, the latest, which have no labels until somebody reads them."""

    first: int
    last: int
    written: bool = False


@dataclass(frozen=True)
class Choice:
    """Tokens that ``kv_choose`` lists.

    Attributes:
        labels: What is stored of the keys.
        k: Tokens per head, forced ones included.
        sink: First tokens that are always taken.
        recent: Last tokens that are always taken.
        begin: First token that counts, [b, g] int32.
        scale: Of the scores; 1 / sqrt(d) by default.
        new: The last tokens, where they have no labels yet.
        keys: Of all tokens, [b, g, s, d], where some have none.
    """

    labels: op.Labels
    k: int
    sink: int = 0
    recent: int = 0
    begin: Tensor | None = None
    scale: float | None = None
    new: Unlabelled | None = None
    keys: Tensor | None = None

    def label(self) -> None:
        """Writes the labels that are missing."""
        new, to = self.new, self.labels
        if new is None or new.written or self.keys is None:
            return
        keys = self.keys[:, :, new.first : new.last].to(to.records.device)
        op.append_labels(to.records, keys, to.channels, new.first)
        new.written = True

    def lists(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What ``kv_choose`` returns."""
        self.label()
        return op.kv_choose(
            q,
            self.labels,
            self.k,
            scale=self.scale,
            sink=self.sink,
            recent=self.recent,
            begin=self.begin,
        )


def at_once(q: Tensor, keys: Tensor, channels: int) -> bool:
    """Whether one launch chooses and attends on compute capability 9.0: what ``attend`` takes.

    Args:
        q: [b, h, 1, d].
        keys: [b, g, s, d].
        channels: Of a label.
    """
    g, s, d = keys.shape[1:]
    rows = q.shape[1] // g
    return (
        keys.dtype == q.dtype
        and keys.dtype in (torch.bfloat16, torch.float16)
        and d in (64, 128)
        and q.shape[2] == 1
        and rows <= 8
        and s <= (131072 if rows <= 4 else 81920)
        and channels <= 32
    )


def attend(
    what: tuple[int, tuple[int, int, int, int]],
    rows: Tensor,
    out: Tensor,
    lse: Tensor,
    scales: tuple[float, float],
    segment: _C.KvSegment,
    choice: Choice,
) -> bool:
    """Chooses and attends on a CUDA device; False, and nothing done, where no kernel takes all.

    On compute capability 9.0 by labels of up to 32 channels, up to 131072 tokens and 4 rows a KV head
    or 81920 and 8, d = 64 or 128, 16-bit keys and values of q's dtype. The blocks of a head read what
    they chose as soon as they know it, where two launches wait for the last of all heads. They write the
    label of one new token on their way.

    Args:
        what: Dtype and shape of the rows.
        rows: q as [b, g, h / g * n, d].
        out: As rows.
        lse: [b, h, n] f32.
        scales: Of scores, and softcap.
        segment: Keys and values, without lists.
        choice: Which of them count.
    """
    name = "sparse_attention"
    memory, (b, g, _) = op.units_of(name, choice.labels, rows)
    begin = op.address_of(name, "begin", choice.begin, b * g, rows.device)
    to = out.data_ptr(), lse.data_ptr(), scales, segment
    new = choice.new
    writes = new is not None and not new.written and new.first + 1 == new.last
    if not writes:
        choice.label()
    how = choice.k, 0, choice.sink, choice.recent, begin, writes
    done = cuda_kv.chosen_attention(what, rows, *to, memory[0], *how)
    if new is not None and writes:
        new.written = done
    return done
