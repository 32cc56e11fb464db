"""What becomes of tokens that leave: merged into the tokens that stay and resemble them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 256  # tokens compared at a time, so that no s x s matrix of all pairs exists


def merge_values(
    keys: Tensor, values: Tensor, weight: Tensor, stays: Tensor, joins: Tensor, *, above: float
) -> tuple[Tensor, Tensor]:
    """Values [s, d] of one head with tokens that leave merged in, and log mass [s] of each token.

    A token that joins goes to the one that stays where cos(k, k') * cos(v, v') is largest, both
    cosines positive, if that is above ``above``; else to nobody, the zero class. The value of a token
    that stays becomes the mean of its members by ``weight``, and its mass their weights' sum over its
    own: the logarithm of that, added to its attention score, makes it draw what its members drew.
    Keys stay as they are: rotated keys of two places have no sensible mean.

    After Li et al. 2024, EMS (arXiv:2412.08521), evict-then-merge with a zero class.

    Args:
        keys: [s, d].
        values: [s, d].
        weight: Attention received, [s], not below 0.
        stays: [s] bool.
        joins: [s] bool, none of which stays.
        above: 1 merges nothing.
    """
    center, member = stays.nonzero().flatten(), joins.nonzero().flatten()
    log_mass = torch.zeros(len(weight))
    if len(center) == 0 or len(member) == 0:
        return values, log_mass
    k, v = _unit(keys), _unit(values)
    total = weight.clamp(min=1e-12).float()
    sums = values.float() * total.unsqueeze(-1)
    own = total.clone()
    for rows in torch.split(member, _ROWS):
        near_k, near_v = k[rows] @ k[center].T, v[rows] @ v[center].T
        alike = (near_k.clamp(0, 1) * near_v.clamp(0, 1)).masked_fill_(near_v <= 0, -1)
        best, place = alike.max(-1)
        taken = best > above
        to, rows = center[place[taken]], rows[taken]
        sums.index_add_(0, to, values[rows].float() * own[rows].unsqueeze(-1))
        total.index_add_(0, to, own[rows])
    changed = stays & (total > own)
    merged = torch.where(changed.unsqueeze(-1), sums / total.unsqueeze(-1), values.float())
    return merged.to(values.dtype), torch.where(changed, (total / own).log(), log_mass)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay."""
    norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    unit: Tensor = x.float() / norm.clamp(min=1e-12)
    return unit
