"""Quantization of weights while they are trained: what storing them will do, with a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def min_max(weight: Tensor, bits: int, size: int) -> Tensor:
    """Weight [n, k] as codes of `bits` bits would give it back, `size` consecutive ones per scale.

    scale = (max - min) / (2^bits - 1) over the group and 0, zero = round(-min / scale), and
    w ~ scale * (round(w / scale) + zero, clamped, - zero) (arXiv:2412.17560, sec. 3.1). The gradient
    is that of the identity (straight-through).
    """
    n, k = weight.shape
    groups = weight.detach().reshape(n, k // size, size)
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    top = 2**bits - 1
    scale = (high - low).div_(top).clamp_(min=1e-30)
    zero = (-low / scale).round_()
    codes = (groups / scale).round_().add_(zero).clamp_(0, top)
    stored = codes.sub_(zero).mul_(scale).reshape(n, k)
    return weight + (stored - weight.detach())
