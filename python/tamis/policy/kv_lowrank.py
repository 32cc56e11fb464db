"""Keys before rotary embedding as a product of few columns: fit, rotation and its exact inverse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def rotate(x: Tensor, places: Tensor, frequencies: Tensor, *, back: bool = False) -> Tensor:
    """Keys x [..., n, d] turned by their places: channels i, i + pairs by ``places * frequencies[i]``.

    Args:
        x: Keys; channels from 2 * pairs on are left alone.
        places: [n], or [..., n] to broadcast with x.
        frequencies: [pairs], radians a token.
        back: Turn the other way: the exact inverse.
    """
    pairs = len(frequencies)
    angle = places.unsqueeze(-1).double() * frequencies.to(places.device).double()
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if back:
        sin = -sin
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    turned = [first * cos - second * sin, second * cos + first * sin, x[..., 2 * pairs :]]
    return torch.cat(turned, -1)


def fit(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best product of rank ``rank`` of each x [b, n, c]: coordinates [b, n, r], basis [b, r, c].

    By the eigenvectors of the c x c Gram matrix, so its cost grows with n only once.
    """
    x = x.float()
    gram = (x.transpose(-1, -2) @ x).double()
    vectors = torch.linalg.eigh(gram).eigenvectors  # ascending
    basis = vectors[..., -rank:].flip(-1).float()
    return x @ basis, basis.transpose(-1, -2)


def stray_chunks(alike: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Chunks [b, g, count] that their mean key tells least about, and the others, both ascending.

    Sun et al. 2024, ShadowKV, arXiv:2410.21465, sec. 4.2.

    Args:
        alike: Smallest cosine of a key and its chunk's mean, [b, g, chunks].
        count: How many; fewer where there are not enough to leave one.
    """
    order = alike.argsort(dim=-1)
    count = min(count, max(0, order.shape[-1] - 1))
    return order[..., :count].sort(-1).values, order[..., count:].sort(-1).values


def energy_rank(gram: Tensor, energy: float) -> int:
    """Smallest rank, a multiple of 8, whose directions hold ``energy`` of a Gram matrix [c, c]."""
    values = torch.linalg.eigvalsh(gram.double()).flip(-1).clamp(min=0)
    short = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
    return min(len(values), -(-short // 8) * 8)
