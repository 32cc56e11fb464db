"""Attention to tokens that the call itself chooses, by labels: on a GPU in one launch where it can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis import _C
from tamis.ops import cuda_kv
from tamis.ops import kv_select as op


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
    """

    labels: op.Labels
    k: int
    sink: int = 0
    recent: int = 0
    begin: Tensor | None = None
    scale: float | None = None

    def lists(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What ``kv_choose`` returns."""
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
    return (
        keys.dtype == q.dtype
        and keys.dtype in (torch.bfloat16, torch.float16)
        and (d, q.shape[2]) == (128, 1)
        and q.shape[1] <= 4 * g
        and s <= 131072
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

    On compute capability 9.0 up to 131072 tokens by labels of 32 channels, up to 4 rows a KV head, d =
    128, 16-bit keys and values of q's dtype. The blocks of a head read what they chose as soon as they
    know it, where two launches wait for the last of all heads.

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
    how = choice.k, 0, choice.sink, choice.recent, begin
    return cuda_kv.chosen_attention(what, rows, *to, memory[0], *how)
