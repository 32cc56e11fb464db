"""How activations are weighed before they are compared, and the threshold that drops a share."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.errors import TamisValueError
from tamis.recipe import ActivationStats

BINS = 1 << 15
"""Magnitudes by their bits in bfloat16, sign left out: steps of 1/128 to 1/256 of the magnitude."""


def even(stats: ActivationStats) -> Tensor:
    """All channels alike, [channels]."""
    return torch.ones_like(stats.norms)


def column_norm(stats: ActivationStats) -> Tensor:
    """Norm of the weights a channel multiplies, so that it bounds what dropping it changes."""
    return stats.norms


def mean_up(stats: ActivationStats) -> Tensor:
    """Mean magnitude of the other half of the gated unit (CHESS, arXiv:2409.01366, eq. 10).

    Raises:
        TamisValueError: Calibration did not collect it.
    """
    if stats.mean_up is None:
        raise TamisValueError(
            "activation.mean_up: stats: got no mean_up, wanted it; name it in the recipe's needs."
        )
    return stats.mean_up


def count_magnitudes(values: Tensor) -> Tensor:
    """How many values [...] fall into each bin of magnitude, [BINS] int64 in host memory.

    NaN goes to the last.
    """
    bits = values.detach().abs().to(torch.bfloat16).reshape(-1).view(torch.int16)
    return torch.bincount(bits.int(), minlength=BINS).cpu()


def threshold(counts: Tensor, sparsity: float) -> tuple[float, float]:
    """The magnitude that `sparsity` of what was counted lies below, and the share that really does.

    Exact up to a bin. Sparsity 0 gives 0: nothing is below it.

    Args:
        counts: [BINS] of `count_magnitudes`, summed.
        sparsity: 0 to 1.
    """
    total = int(counts.sum())
    if sparsity <= 0 or total == 0:
        return 0.0, 0.0
    below = counts.cumsum(0)
    bin_ = int(torch.searchsorted(below, torch.tensor(round(sparsity * total)), right=False))
    edge = min(bin_ + 1, BINS - 1)  # everything in the bin goes
    bound = float(torch.tensor(edge, dtype=torch.int16).view(torch.bfloat16))
    return bound, int(below[edge - 1]) / total
