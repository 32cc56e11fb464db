"""What a pruning method is made of: its inputs, its decisions and the values that join them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from tamis.errors import TamisValueError

if TYPE_CHECKING:
    from torch import Tensor

KEEP = "tamis_keep"
"""Name of the buffer with the mask [n, k] of a pruned layer that stays nn.Linear."""

Group = Literal["row", "layer", "global", "tile"]
"""Which weights compete with each other: an output row, the layer, all layers, or 128 columns."""


@dataclass(frozen=True)
class Stats:
    """What calibration saw at the input of one linear, averaged over its real tokens.

    Linears that read the same input share one Stats, hence one factorisation.

    Attributes:
        tokens: Real (not padded) tokens seen.
        x_sq: Mean square of each input feature, [k] f64.
        hessian: Mean of x xᵀ, [k, k] f64.
        cache: Derived values by name, filled by the policies that compute them.
    """

    tokens: int = 0
    x_sq: Tensor | None = None
    hessian: Tensor | None = None
    cache: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class LinearContext:
    """One linear as the policies see it.

    Attributes:
        name: Module path; seeds what is random.
        weight: [n, k] f32.
        stats: The statistics that the recipe declared in `needs`.
        seed: The caller's seed.
    """

    name: str
    weight: Tensor
    stats: Stats = field(default_factory=Stats)
    seed: int = 0


@dataclass(frozen=True)
class Pattern:
    """Which sets of kept weights are allowed.

    Attributes:
        kind: "unstructured", "nm" (`keep` kept of every `of` consecutive inputs) or "block".
        keep: Weights kept of each group (nm).
        of: Group length in inputs (nm).
        rows: Block height in output features (block).
        cols: Block width in input features (block).
    """

    kind: Literal["unstructured", "nm", "block"] = "unstructured"
    keep: int = 0
    of: int = 0
    rows: int = 1
    cols: int = 1

    @property
    def unit(self) -> int:
        """Consecutive inputs that are decided together."""
        return self.of if self.kind == "nm" else self.cols

    def __str__(self) -> str:
        if self.kind == "nm":
            return f"{self.keep}:{self.of}"
        return f"block:{self.rows}x{self.cols}" if self.kind == "block" else self.kind


@dataclass(frozen=True)
class Goal:
    """How much of one linear may stay: the pattern and the fraction of zeros."""

    pattern: Pattern
    sparsity: float


Score = Callable[[LinearContext], "Tensor"]
"""Importance of each weight, [n, k]; larger is kept."""

Select = Callable[["Tensor", Goal, Group], "Tensor"]
"""(score [n, k], goal, group) -> keep [n, k] bool."""

Repair = Callable[["LinearContext", "PruneRecipe", Goal, "Tensor | None"], "tuple[Tensor, Tensor]"]
"""(context, recipe, goal, keep or None to choose it on the way) -> weight [n, k], keep [n, k]."""


@dataclass(frozen=True)
class Reconstruct:
    """Training of a block's kept weights to the output of the dense block, with Adam.

    Attributes:
        steps: Updates per block.
        samples: Calibration samples in each.
        lr: Learning rate of the first step; it falls linearly to zero.
    """

    steps: int
    samples: int
    lr: float


@dataclass(frozen=True)
class PruneRecipe:
    """A published way to prune a linear, as data.

    Attributes:
        score: Importance of each weight.
        select: Turns scores into kept weights.
        group: Which weights compete; "tile" leaves the choice to `repair`, tile by tile.
        repair: Changes the kept weights to make up for the dropped ones.
        needs: Statistics that calibration must collect: "x_sq", "hessian".
        damping: Added to the Hessian's diagonal, as a fraction of its mean.
        pattern: What it prunes to where the caller names no pattern; None: single weights.
        format: How it stores such a pattern where the caller names no format.
        recover: Training of each block once its linears are pruned.
    """

    score: Score
    select: Select
    group: Group = "row"
    repair: Repair | None = None
    needs: frozenset[str] = frozenset()
    damping: float = 0.01
    pattern: Pattern | None = None
    format: str = "auto"
    recover: Reconstruct | None = None


def apply(recipe: PruneRecipe, ctx: LinearContext, goal: Goal) -> tuple[Tensor, Tensor]:
    """Weight [n, k] f32, repaired but not masked, and keep [n, k] bool of one linear.

    Raises:
        TamisValueError: The recipe leaves the choice to a repair that it does not have.
    """
    if goal.pattern.kind != "nm" and count_dropped(goal.sparsity, ctx.weight.numel()) == 0:
        return ctx.weight, torch.ones_like(ctx.weight, dtype=torch.bool)
    keep = None
    if recipe.group != "tile":
        keep = recipe.select(recipe.score(ctx), goal, recipe.group)
    if recipe.repair is not None:
        return recipe.repair(ctx, recipe, goal, keep)
    if keep is None:
        raise TamisValueError(
            "recipe.apply: recipe: got group 'tile' without repair, wanted a repair that chooses "
            "the weights; set repair or another group."
        )
    return ctx.weight, keep


def count_dropped(sparsity: float, count: int) -> int:
    """Weights to drop of `count`: floor(sparsity * count), immune to binary rounding of e.g. 0.29."""
    return min(count, math.floor(round(sparsity * count, 6)))


@dataclass(frozen=True)
class ActivationStats:
    """What a threshold of activations may be weighed by; entry i belongs to channel i.

    Attributes:
        norms: Norm of the weights that the channel multiplies, [channels] f32.
        mean_up: Mean magnitude of the other half of a gated unit, [neurons] f32, where the recipe
            needs it.
    """

    norms: Tensor
    mean_up: Tensor | None = None


Weigh = Callable[[ActivationStats], "Tensor"]
"""Weight of each channel, [channels] f32: magnitudes times weights are compared with one number."""

Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""A linear layer of a block by what it makes."""


@dataclass(frozen=True)
class ActivationRecipe:
    """A published way to leave out small activations, as data.

    Attributes:
        neurons: Weighs the activated gates of a gated MLP: neurons below the threshold are left out
            of up and down. None: neurons stay.
        inputs: Linears whose inputs are compared with a threshold of their own.
        weigh: Weighs those inputs.
        needs: Statistics that calibration must collect first: "mean_up".
    """

    neurons: Weigh | None = None
    inputs: tuple[Role, ...] = ()
    weigh: Weigh | None = None
    needs: frozenset[str] = frozenset()
