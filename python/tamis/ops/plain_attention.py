"""Attention over dense segments by torch's operators: on a CUDA device, what its kernels do not take."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


class DenseLists(Protocol):
    """What ``Lists`` says of the tokens that count."""

    @property
    def index(self) -> Tensor | None:
        """Units to read."""

    @property
    def count(self) -> Tensor | None:
        """How many of them."""

    @property
    def begin(self) -> Tensor | None:
        """First token that counts."""

    @property
    def end(self) -> Tensor | None:
        """One past the last token that counts."""

    @property
    def bias(self) -> Tensor | None:
        """Added to the scores."""


def has_kernel(q: Tensor, keys: Tensor) -> bool:
    """Whether a CUDA kernel reads keys [b, g, s, d] for q [b, h, n, d]."""
    return (
        keys.dtype == q.dtype
        and keys.dtype in (torch.float16, torch.bfloat16)
        and keys.shape[3] in (64, 128)
    )


@cache
def say_once(dtype: torch.dtype, d: int) -> None:
    """Warns that keys of that dtype and head size are read by torch's operators."""
    warnings.warn(
        f"sparse_attention: CUDA kernels read float16 and bfloat16 of 64 and 128 channels, not {dtype} of "
        f"{d}: torch's operators do, several times slower; convert the model by model.to(torch.bfloat16) "
        "where the head size allows it.",
        stacklevel=2,
    )


def plain_attention(
    q: Tensor, keys: Tensor, values: Tensor, lists: DenseLists, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Output [b, h, n, d] and the logarithm of its weights' sum [b, h, n] f32, as ``sparse_attention``."""
    b, h, n, d = q.shape
    g, s = keys.shape[1:3]
    rows = q.reshape(b, g, h // g * n, d).float()
    at = torch.arange(s, device=q.device).expand(b, g, -1)
    if lists.index is not None:
        at = lists.index.view(b, g, -1).long()
    counts = torch.ones_like(at, dtype=torch.bool)
    if lists.count is not None:
        counts &= torch.arange(at.shape[2], device=q.device) < lists.count.view(b, g, 1)
    at = torch.where(counts, at, 0) if lists.index is not None else at
    if lists.begin is not None:
        counts &= at >= lists.begin.view(b, g, 1)
    if lists.end is not None:
        counts &= at < lists.end.view(b, g, 1)
    if lists.index is not None:
        wide = at.clamp(0, max(s - 1, 0)).unsqueeze(-1).expand(-1, -1, -1, d)
        keys, values = keys.gather(2, wide), values.gather(2, wide)
    scores = rows @ keys.float().transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if lists.bias is not None:
        scores = scores + lists.bias.view(b, g, s).gather(2, at.clamp(0, s - 1)).unsqueeze(2)
    scores = scores.masked_fill(~counts.unsqueeze(2), float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num_(0.0)
    out = weights @ values.float()
    return out.to(q.dtype).view(b, h, n, d), lse.view(b, h, n)
