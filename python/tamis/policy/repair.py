"""Repairs: new values for the kept weights that make up for the dropped ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tamis.policy import score as scores
from tamis.policy import solve
from tamis.recipe import Goal, count_dropped

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.recipe import LinearContext, PruneRecipe

TILE = 128  # columns whose updates are batched; the comparison group of "tile" recipes
LEAF = 16  # columns swept one by one; outer products this small run on one thread, without barriers

# ADMM: the first penalty, steps before it changes, changes at most, share of moved weights that ends it
RHO, STEPS, TURNS, SETTLED = 0.1, 3, 30, 0.005
DESCENTS = 10  # conjugate gradient steps; 5 reach the same error to 0.1 %, 40 no less


def obs_sweep(
    ctx: LinearContext, recipe: PruneRecipe, goal: Goal, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Drops columns left to right, spreading each error over the later columns (SparseGPT).

    weight [n, k] and keep [n, k] bool, swept in the weight's dtype. Per column j, with u the upper Cholesky factor of the
    inverse Hessian: e = (w_j - q_j) / u_jj, then w_:,j: -= e u_j,j: (Frantar & Alistarh 2023,
    algorithm 1). Columns beyond the tile of 128 are updated once per tile.

    With keep None the mask is chosen on the way from the updated weights: the smallest w² / u_jj²
    of each [n, 128] tile (counts add up to floor(sparsity * n * k) over the layer), or per row
    whenever a group of M columns begins (N:M). Dead inputs lose their weights.
    """
    factor, dead = solve.inverse_factor(ctx.stats, ctx.name, recipe.damping)
    u = factor.to(ctx.weight)
    rows = ctx.weight.t().contiguous()  # [k, n]: a column of the weight is contiguous
    rows[dead] = 0
    k, n = rows.shape
    chosen = torch.empty_like(rows, dtype=torch.bool)
    width = max(goal.pattern.unit, TILE // goal.pattern.unit * goal.pattern.unit)
    for begin in range(0, k, width):
        end = min(begin + width, k)
        tile, tile_u = rows[begin:end], u[begin:end, begin:end]
        if keep is not None:
            chosen[begin:end] = keep[:, begin:end].t()
        elif goal.pattern.kind != "nm":
            share = _share(goal, n, begin, end)
            chosen[begin:end] = _choose(recipe, share, tile, tile_u.diagonal())
        on_the_way = recipe if keep is None and goal.pattern.kind == "nm" else None
        errors = _sweep_tile(tile, tile_u, chosen[begin:end], goal, on_the_way)
        rows[end:].addmm_(u[begin:end, end:].t(), errors, alpha=-1)
    return rows.t().contiguous(), chosen.t().contiguous()


def admm(
    ctx: LinearContext, recipe: PruneRecipe, goal: Goal, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Finds the mask and its weights together by ADMM, then better weights on that mask (ALPS).

    weight [n, k] and keep [n, k] bool, in the weight's dtype; the mask starts from `keep`, or from
    the largest where it is None. With h the damped Hessian, columns scaled so that its diagonal is 1,
    ŵ the dense weights and p the recipe's choice of the largest squares, it repeats

        w = (ŵ h - v + ρ d) (h + ρ I)⁻¹,  z = w + v / ρ,  d = p(z),  v = ρ (z - d)

    (Meng et al. 2024, section 3.1). ρ grows every three steps, the faster the more of the mask moves,
    until that settles. Dead inputs lose their weights.
    """
    unit, scale, dead = solve.unit_hessian(ctx.stats, ctx.name, recipe.damping)
    unit, scale = unit.to(ctx.weight), scale.to(ctx.weight)
    dense = (ctx.weight * scale).masked_fill_(dead, 0)
    target = dense @ unit
    chosen = recipe.select(dense.square(), goal, recipe.group) if keep is None else keep
    d, v, rho = dense * chosen, torch.zeros_like(dense), RHO
    for _ in range(TURNS):
        inverse, before = solve.inverse_plus(unit, rho, ctx.name), chosen
        for _ in range(STEPS):
            z = torch.addmm(v / rho, (target - v).add_(d, alpha=rho), inverse)
            chosen = recipe.select(z.square(), goal, recipe.group)
            d = z * chosen
            v = (z - d).mul_(rho)
        moved = int((chosen != before).sum()) / int(chosen.sum())
        if moved <= SETTLED:
            break
        rho *= 1.3 if moved > 0.1 else 1.2
    return _descend(d, target, unit, chosen) / scale, chosen


def _descend(weight: Tensor, target: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The weights [n, k] after conjugate gradient steps on the mask, outside which they are zero.

    They lower (w - ŵ) h (w - ŵ)ᵀ, each row for itself, where target = ŵ h. With a diagonal of ones h
    needs no preconditioner.
    """
    tiny = torch.finfo(weight.dtype).tiny
    residual = (target - weight @ hessian) * keep
    direction, power = residual, residual.square().sum(1, keepdim=True)
    for _ in range(DESCENTS):
        image = (direction @ hessian).mul_(keep)
        step = power / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        weight = weight + step * direction
        residual = residual - step * image
        before, power = power, residual.square().sum(1, keepdim=True)
        direction = residual + power / before.clamp_min(tiny) * direction
    return weight


def _sweep_tile(
    tile: Tensor, u: Tensor, chosen: Tensor, goal: Goal, recipe: PruneRecipe | None
) -> Tensor:
    """Sweeps tile [j, n] in place and returns its scaled errors [j, n].

    With a recipe, fills `chosen` [j, n] group by group (N:M) before each group is swept. Columns
    beyond the leaf of 16 are updated once per leaf, by a product instead of 16 outer ones.
    """
    errors, scale = torch.empty_like(tile), torch.empty_like(tile)
    diagonal = u.diagonal().unsqueeze(1)
    unit = goal.pattern.unit if recipe is not None else tile.shape[0]
    width = max(unit, LEAF // unit * unit) if recipe is not None else LEAF
    for begin in range(0, tile.shape[0], width):
        end = min(begin + width, tile.shape[0])
        for j in range(begin, end):
            if j % unit == 0:
                group = slice(j, j + unit)
                if recipe is not None:
                    chosen[group] = _choose(recipe, goal, tile[group], u.diagonal()[group])
                scale[group] = chosen[group].logical_not() / diagonal[group]
            torch.mul(tile[j], scale[j], out=errors[j])
            tile[j + 1 : end].addr_(u[j, j + 1 : end], errors[j], alpha=-1)
        tile[end:].addmm_(u[begin:end, end:].t(), errors[begin:end], alpha=-1)
    tile.mul_(chosen)
    return errors


def _choose(recipe: PruneRecipe, goal: Goal, tile: Tensor, diagonal: Tensor) -> Tensor:
    """Which weights stay, [j, n], of those in tile [j, n] with the factor's diagonal [j]."""
    score = scores.obs_columns(tile.t(), diagonal)
    return recipe.select(score, goal, "tile").t()


def _share(goal: Goal, n: int, begin: int, end: int) -> Goal:
    """The tile's share of the layer's dropped units, so that the layer's total is exact."""
    per_column = n // goal.pattern.rows
    scale = goal.pattern.cols
    before = count_dropped(goal.sparsity, begin // scale * per_column)
    upto = count_dropped(goal.sparsity, end // scale * per_column)
    return Goal(goal.pattern, (upto - before) / ((end - begin) // scale * per_column))
