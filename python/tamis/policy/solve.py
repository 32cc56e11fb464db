"""Linear algebra shared by scores and repairs, in f64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tamis.errors import TamisValueError

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.recipe import Stats

LEAF = 256  # below this a library triangular solve beats further halving


def inverse_factor(stats: Stats, name: str, damping: float = 0.01) -> tuple[Tensor, Tensor]:
    """Upper u [k, k] f64 with uᵀu = (H + damping * mean(diag H) I)⁻¹, and dead [k] bool.

    Dead inputs were never nonzero: their diagonal becomes 1 and their weights must be dropped.
    With p the reversal of indices and l lᵀ = p H p, u = p l⁻¹ p: no inverse is ever formed.

    Raises:
        TamisValueError: No Hessian was collected, or it stays singular.
    """
    key = f"inverse_factor:{damping}"
    if key not in stats.cache:
        hessian = _damped(stats, name, "inverse_factor", damping)
        lower = _cholesky(hessian.flip(0, 1), name, "inverse_factor")
        stats.cache[key] = invert_lower(lower).flip(0, 1)
    return stats.cache[key], stats.cache["dead"]


def unit_hessian(stats: Stats, name: str, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """The damped Hessian [k, k] f64 scaled to a diagonal of ones, scale [k] f64 and dead [k] bool.

    With h the first, scale_i * scale_j * h_ij is H + damping * mean(diag H) I: h is the Hessian of
    weights that are multiplied by scale. Dead inputs were never nonzero; their weights must be dropped.

    Raises:
        TamisValueError: No Hessian was collected.
    """
    hessian = _damped(stats, name, "unit_hessian", damping)
    scale = hessian.diagonal().sqrt()
    return hessian.div_(scale).div_(scale.unsqueeze(1)), scale, stats.cache["dead"]


def inverse_plus(matrix: Tensor, ridge: float, name: str) -> Tensor:
    """Inverse of matrix + ridge I for a symmetric matrix [k, k].

    Raises:
        TamisValueError: The sum is not positive definite.
    """
    raised = matrix.clone()
    raised.diagonal().add_(ridge)
    return torch.cholesky_inverse(_cholesky(raised, name, "inverse_plus"))


def _cholesky(matrix: Tensor, name: str, caller: str) -> Tensor:
    factored = torch.linalg.cholesky_ex(matrix)
    if factored.info:
        raise TamisValueError(
            f"solve.{caller}: {name}: got a Hessian that is not positive definite, "
            "wanted one with finite, varied inputs; pass more calibration data."
        )
    lower: Tensor = factored.L
    return lower


def _damped(stats: Stats, name: str, caller: str, damping: float) -> Tensor:
    """A copy of H + damping * mean(diag H) I, [k, k] f64; notes dead inputs in the cache."""
    if stats.hessian is None:
        raise TamisValueError(
            f"solve.{caller}: {name}: got no 'hessian' statistics, wanted them; "
            "add 'hessian' to needs."
        )
    hessian = stats.hessian.to(torch.float64, copy=True)
    diagonal = hessian.diagonal()
    stats.cache["dead"] = diagonal == 0
    diagonal[stats.cache["dead"]] = 1.0
    diagonal += damping * diagonal.mean()
    return hessian


def invert_lower(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix [k, k], by halves: [[a, 0], [c, b]]."""
    k = lower.shape[0]
    if k <= LEAF:
        identity = torch.eye(k, dtype=lower.dtype, device=lower.device)
        leaf: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return leaf
    half = k // 2
    out = torch.zeros_like(lower)
    out[:half, :half] = invert_lower(lower[:half, :half])
    out[half:, half:] = invert_lower(lower[half:, half:])
    out[half:, :half] = -(out[half:, half:] @ lower[half:, :half]) @ out[:half, :half]
    return out
