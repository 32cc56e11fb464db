"""What sparsify_ refuses before it begins: formats, dtypes, patterns and weights that do not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tamis import calibrate
from tamis.convolution import check_conv
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import FORMATS
from tamis.ops.tensors import DTYPE_NAME
from tamis.recipe import Pattern, PruneRecipe
from tamis.scope import ignoring

__all__ = ["check_prunable", "group_size", "in_groups"]


def check_prunable(
    linears: Mapping[str, nn.Linear],
    convs: Mapping[str, nn.Conv2d],
    recipe: PruneRecipe,
    pattern: Pattern,
    format: str,
    dtype: str | None,
) -> None:
    """Refuses what would fail later: formats, statistics, shapes and weights.

    Raises:
        TamisValueError: A format or dtype that is not one, or does not fit; weights that are not finite.
        TamisTypeError: Weights of another dtype, or without memory.
        TamisUnsupported: A method, convolution or forward for which nothing is there.
    """
    if format not in ("auto", "dense", *FORMATS):
        raise TamisValueError(
            f"sparsify_: format: got {format!r}, wanted 'auto', 'dense' or one of "
            f"{', '.join(FORMATS)}; correct it."
        )
    grouped = format == "groupq"
    _check_dtype(format, dtype)
    if format in ("nm", "block") and pattern.kind != format:
        raise TamisValueError(
            f"sparsify_: format: got {format!r} with pattern '{pattern}', wanted a format that "
            "holds it; use 'auto'."
        )
    unknown = recipe.needs - calibrate.STATISTICS
    if unknown:
        raise TamisUnsupported(
            f"sparsify_: method: got needs {sorted(unknown)}, wanted some of "
            f"{sorted(calibrate.STATISTICS)}; only these are collected."
        )
    if recipe.group == "global" and (recipe.repair or "hessian" in recipe.needs):
        raise TamisUnsupported(
            "sparsify_: method: got a global group with a repair or Hessian, wanted scores that "
            "are known before anything is pruned; use a row or layer group."
        )
    _check_shapes(linears, pattern, grouped)
    for name, linear in linears.items():
        _check_weight(name, linear)
        _check_forward(name, convs.get(name, linear))
    for name, conv in convs.items():
        check_conv(name, conv, pattern, recipe, format, dtype)


def _check_dtype(format: str, dtype: object) -> None:
    grouped = format == "groupq"
    known = ("u4", "u8") if grouped else (None,) if format == "dense" else (None, "i8")
    if dtype in known:
        return
    fix = "leave it out" if grouped else "a model's own dtype is changed by model.to(dtype)"
    if dtype in ("u4", "u8"):
        fix = "these codes are of format='groupq'"
    raise TamisValueError(
        f"sparsify_: dtype: got {dtype!r} with format {format!r}, wanted "
        f"{' or '.join(map(repr, known))}; {fix}."
    )


def _check_shapes(linears: Mapping[str, nn.Linear], pattern: Pattern, grouped: bool) -> None:
    unfit: dict[str, str] = {}
    for name, linear in linears.items():
        n, k = linear.weight.shape
        if why := _misfit(n, k, pattern, grouped):
            unfit[name] = why
    if unfit:
        name, why = next(iter(unfit.items()))
        named = f"{name} and {len(unfit) - 1} more" if len(unfit) > 1 else name
        raise TamisValueError(
            f"sparsify_: {why.format(named)}; use another pattern or format, or "
            f"{ignoring(list(unfit), linears)}."
        )


def _misfit(n: int, k: int, pattern: Pattern, grouped: bool) -> str:
    """Why a weight [n, k] cannot be pruned so, with {} for its name; "" if it can."""
    if 0 in (n, k):
        return f"weight: got shape [{n}, {k}] for {{}}, wanted at least one input and output"
    if grouped and k % group_size(pattern):
        unit = group_size(pattern)
        return f"format: got 'groupq' for {{}} with {k} inputs, wanted a multiple of {unit}"
    if pattern.unit and k % pattern.unit:
        unit = pattern.unit
        return f"pattern: got '{pattern}' for {{}} with {k} inputs, wanted a multiple of {unit}"
    if n % pattern.rows:
        unit = pattern.rows
        return f"pattern: got '{pattern}' for {{}} with {n} outputs, wanted a multiple of {unit}"
    return ""


def _check_weight(name: str, linear: nn.Linear) -> None:
    if linear.weight.is_meta or linear.weight.dtype not in (*DTYPE_NAME, torch.float64):
        fix = (
            "load the model's weights first"
            if linear.weight.is_meta
            else "model.to(torch.bfloat16)"
        )
        raise TamisTypeError(
            f"sparsify_: {name}: got a weight on {linear.weight.device.type} of "
            f"{linear.weight.dtype}, wanted floating-point values of 16, 32 or 64 bits; {fix}."
        )
    if not bool(linear.weight.isfinite().all()):
        raise TamisValueError(
            f"sparsify_: {name}: got weights that are NaN or infinite, wanted finite ones; repair "
            f"the checkpoint or ignore=[{name!r}]."
        )


def _check_forward(name: str, layer: nn.Module) -> None:
    """A forward of one's own on a layer would be lost with it; accelerate's hooks go along."""
    own = vars(layer).get("forward")
    replaced = own is not None and getattr(own, "__func__", None) is not type(layer).forward
    if replaced and "_hf_hook" not in vars(layer):
        raise TamisUnsupported(
            f"sparsify_: {name}: got a layer whose forward was replaced, wanted nn.Linear's own, which "
            f"compressed layers compute; put that back, or ignore=[{name!r}]."
        )


def in_groups(pattern: Pattern) -> bool:
    """Whether whole groups of groupq are kept or dropped."""
    return pattern.kind == "block" and pattern.rows == 1 and pattern.cols % 16 == 0


def group_size(pattern: Pattern) -> int:
    """Columns of a groupq group that suit the pattern."""
    return 32 if pattern.kind == "block" and pattern.cols % 32 == 0 else 16
