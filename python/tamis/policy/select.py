"""Selection: which weights stay, as a boolean mask [n, k]; exact counts, ties by position.

Of equal scores the one with the lower index is dropped first, as a stable ascending sort would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from tamis.errors import TamisUnsupported
from tamis.recipe import count_dropped

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.recipe import Goal, Group, Pattern


def keep_largest(score: Tensor, goal: Goal, group: Group) -> Tensor:
    """Keeps the largest scores of every group, [n, k] bool.

    unstructured: drops floor(sparsity * count) per row (group "row") or per layer ("layer").
    nm: keeps `keep` of every `of` consecutive inputs, whatever the group.
    block: scores are summed per block; drops floor(sparsity * blocks) of the layer's.

    Raises:
        TamisUnsupported: The group spans more than one layer.
    """
    pattern = goal.pattern
    if pattern.kind == "nm":
        return keep_of_every(score, pattern.keep, pattern.of)
    if group == "global":
        raise TamisUnsupported(
            f"select.keep_largest: group: got {group!r}, wanted 'row' or 'layer'; "
            "use global_threshold across layers."
        )
    if pattern.kind == "block":
        blocks = block_scores(score, pattern)
        keep = drop_smallest(blocks.reshape(1, -1), count_dropped(goal.sparsity, blocks.numel()))
        return expand_blocks(keep.reshape(blocks.shape), pattern)
    rows = score if group == "row" else score.reshape(1, -1)
    return drop_smallest(rows, count_dropped(goal.sparsity, rows.shape[1])).reshape(score.shape)


def drop_smallest(score: Tensor, count: int) -> Tensor:
    """False at the `count` smallest of each row of score [r, c]; [r, c] bool."""
    if count <= 0:
        return torch.ones_like(score, dtype=torch.bool)
    if count >= score.shape[1]:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = score.kthvalue(count, dim=1, keepdim=True).values
    keep = score > bound
    if int(keep.sum()) == score.shape[0] * (score.shape[1] - count):
        return keep
    tied = score == bound
    dropped_ties = count - (score < bound).sum(1, keepdim=True)
    return keep | (tied & (tied.cumsum(1) > dropped_ties))


def keep_of_every(score: Tensor, keep: int, of: int) -> Tensor:
    """Keeps the `keep` largest of every `of` consecutive columns of score [n, k]; [n, k] bool."""
    groups = score.reshape(score.shape[0], -1, of)
    if of > 8:  # counting ranks costs of² comparisons; sorting wins beyond
        order = groups.argsort(dim=-1, stable=True)
        mask = torch.ones_like(groups, dtype=torch.bool)
        mask.scatter_(-1, order[..., : of - keep], False)
        return mask.reshape(score.shape)
    parts = [part.contiguous() for part in groups.unbind(-1)]
    below = [torch.zeros_like(part, dtype=torch.int8) for part in parts]
    for j in range(of):
        for i in range(j):
            later_wins = parts[j] >= parts[i]
            below[j] += later_wins
            below[i] += ~later_wins
    return torch.stack([rank >= of - keep for rank in below], -1).reshape(score.shape)


def block_scores(score: Tensor, pattern: Pattern) -> Tensor:
    """Sum of score [n, k] over each block, [n / rows, k / cols]."""
    n, k = score.shape
    return score.reshape(n // pattern.rows, pattern.rows, k // pattern.cols, pattern.cols).sum(
        dim=(1, 3)
    )


def expand_blocks(keep: Tensor, pattern: Pattern) -> Tensor:
    """Repeats a decision per block [n / rows, k / cols] for each weight; [n, k]."""
    return keep.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.cols, 1)


def global_threshold(scores: Callable[[], Iterable[Tensor]], sparsity: float) -> GlobalKeep:
    """Finds what to drop when the weights of all layers compete, exactly floor(sparsity * count).

    Two passes over 16 bits each of the scores' f32 bit patterns (nonnegative floats order like
    integers), so that the scores of one layer at a time are in memory.

    Args:
        scores: Yields the nonnegative scores of every layer, the same ones at every call.
        sparsity: Fraction of all weights to drop.
    """
    high = torch.zeros(1 << 16, dtype=torch.int64)
    for score in scores():
        high += torch.bincount(_bits(score) >> 16, minlength=1 << 16).cpu()
    count = count_dropped(sparsity, int(high.sum()))
    top, below = _bin_of(high, count)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for score in scores():
        bits = _bits(score)
        low += torch.bincount(bits[(bits >> 16) == top] & 0xFFFF, minlength=1 << 16).cpu()
    bottom, within = _bin_of(low, count - below)
    return GlobalKeep((top << 16) | bottom, count - below - within)


class GlobalKeep:
    """The common bound of a global selection; call it once per layer, in the same order."""

    def __init__(self, bound: int, ties: int) -> None:
        self.bound = bound  # bit pattern of the smallest score that may stay
        self.ties = ties  # scores equal to the bound that must still go

    def __call__(self, score: Tensor) -> Tensor:
        """Which weights stay, [n, k], for the next layer's score [n, k]."""
        bits = _bits(score)
        tied = bits == self.bound
        keep = (bits > self.bound) | (tied & (tied.cumsum(0) > self.ties))
        self.ties = max(0, self.ties - int(tied.sum()))
        return keep.reshape(score.shape)


def _bits(score: Tensor) -> Tensor:
    return score.reshape(-1).to(torch.float32).contiguous().view(torch.int32)


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin where the count-th smallest lies (the first one for 0), and how many lie below it."""
    ends = histogram.cumsum(0)
    index = int(torch.searchsorted(ends, max(count, 1)))
    return index, int(ends[index] - histogram[index])
