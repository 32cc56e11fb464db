"""Scores: how much each weight matters, [n, k]; larger is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import torch

from tamis.errors import TamisValueError
from tamis.policy import solve

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.recipe import LinearContext


def magnitude(ctx: LinearContext) -> Tensor:
    """|w|, [n, k]."""
    return ctx.weight.abs()


def random(ctx: LinearContext) -> Tensor:
    """Uniform numbers, [n, k], that depend on the seed and the layer's name only."""
    # the generator reads 32 bits of its seed only, so seed and name are hashed together
    generator = torch.Generator().manual_seed(crc32(f"{ctx.seed} {ctx.name}".encode()))
    return torch.rand(ctx.weight.shape, generator=generator).to(ctx.weight.device)


def wanda(ctx: LinearContext) -> Tensor:
    """|w_ij| * rms(x_j), [n, k] (Sun et al. 2023, eq. 1; the L2 norm over a common token count).

    Raises:
        TamisValueError: There are no ``x_sq`` statistics.
    """
    if ctx.stats.x_sq is None:
        raise TamisValueError(
            f"score.wanda: {ctx.name}: got no 'x_sq' statistics, wanted them; add 'x_sq' to needs."
        )
    return ctx.weight.abs() * ctx.stats.x_sq.sqrt().to(ctx.weight)


def obs(ctx: LinearContext) -> Tensor:
    """w_ij² / u_jj², [n, k]: loss of dropping w_ij while later columns may still adapt.

    u is the upper Cholesky factor of the inverse Hessian (Frantar & Alistarh 2023, eq. 5).
    """
    factor, _ = solve.inverse_factor(ctx.stats, ctx.name)
    return obs_columns(ctx.weight, factor.diagonal())


def obs_columns(weight: Tensor, diagonal: Tensor) -> Tensor:
    """w_ij² / u_jj² for weights [n, j] and the factor's diagonal [j]."""
    return (weight / diagonal.to(weight)).square()
