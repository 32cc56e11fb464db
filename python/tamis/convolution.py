"""What sparsify_ needs to know of convolutions: their matrix, what fits them, when they gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from tamis import transposed
from tamis.errors import TamisUnsupported
from tamis.nn.conv import window_of

if TYPE_CHECKING:
    from tamis.layout import Layout
    from tamis.recipe import Pattern, PruneRecipe

# Kept share up to which a convolution is stored compressed: above it torch's own, which multiplies
# at nearly the peak, is as fast (bench/results/convolutions.md).
CONV_DENSITY = {"csr": 0.35, "block": 0.75}


def as_matrix(layer: nn.Module) -> nn.Linear:
    """The layer as nn.Linear: a convolution by its weight [out, c * kernel_h * kernel_w]."""
    if isinstance(layer, nn.Linear):
        return layer
    if not isinstance(layer, nn.Conv2d):
        return transposed.as_linear(layer)
    flat = nn.Linear(layer.weight[0].numel(), layer.out_channels, bias=False, device="meta")
    flat.weight = nn.Parameter(layer.weight.detach().flatten(1), layer.weight.requires_grad)
    flat.bias = layer.bias  # type: ignore[assignment]
    return flat.train(layer.training)


def check_conv(
    name: str,
    conv: nn.Conv2d,
    pattern: Pattern,
    recipe: PruneRecipe,
    format: str,
    dtype: str | None,
) -> None:
    """Refuses what no sparse convolution can be.

    Raises:
        TamisUnsupported: Padding, pattern, format, dtype or method do not fit.
    """
    window_of(conv, f"sparsify_: {name}")
    fits = pattern.kind == "unstructured" or (pattern.kind == "block" and pattern.cols == 1)
    if not fits or format not in ("auto", "dense", "csr", "block") or dtype:
        raise TamisUnsupported(
            f"sparsify_: {name}: got a convolution with pattern '{pattern}', format "
            f"{format!r} and dtype {dtype!r}, wanted 'unstructured' or 'vector:G', csr or "
            f"block, and no dtype; ignore=[{name!r}] leaves it alone."
        )
    if recipe.needs:
        raise TamisUnsupported(
            f"sparsify_: {name}: got a method that needs {sorted(recipe.needs)} of a "
            f"convolution, wanted one without calibration such as 'magnitude'; "
            f"ignore=[{name!r}] leaves it alone, targets=['Linear'] all of them."
        )


def choose_conv(
    layouts: Mapping[str, tuple[Layout, int]], density: float, format: str
) -> tuple[Layout | None, str]:
    """csr, or blocks of r x 1 where the pattern has them; dense where zeros are too few."""
    if not layouts:
        return None, "no sparse format holds its dtype"
    blocks = "block" if "block" in layouts else "csr"
    if format != "auto":
        if format not in layouts:
            return None, f"the pattern has no {format}"
        return layouts[format][0], f"format={format!r} was asked for"
    most = CONV_DENSITY[blocks]
    if density > most:
        return None, f"dense is expected to be faster above {most:.0%} kept"
    return layouts[blocks][0], f"expected to be faster than dense below {most:.0%} kept"
