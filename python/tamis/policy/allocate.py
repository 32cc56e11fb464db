"""Allocation: the fraction of zeros of each layer, from the fraction wanted over all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real

from tamis.errors import TamisValueError
from tamis.recipe import count_dropped

Shapes = dict[str, tuple[int, int]]


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The same sparsity for every layer."""
    return dict.fromkeys(shapes, sparsity)


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density of [n, k] proportional to (n + k) / (n k), at most 1.

    Layers that would exceed density 1 stay dense and the others share the rest (Evci et al. 2020,
    appendix of "Rigging the Lottery"). The weights dropped over all layers are exactly
    floor(sparsity * count): whole numbers by largest remainder.
    """
    sizes = {name: n * k for name, (n, k) in shapes.items()}
    total = sum(sizes.values())
    kept = total - count_dropped(sparsity, total)
    open_names = list(shapes)
    exact = {name: float(size) for name, size in sizes.items()}
    while open_names:
        rest = kept - sum(sizes[name] for name in shapes if name not in open_names)
        # density * size = scale * (n + k), so the layer's own size cancels
        scale = rest / sum(sum(shapes[name]) for name in open_names)
        exact.update({name: scale * sum(shapes[name]) for name in open_names})
        full = [name for name in open_names if exact[name] >= sizes[name]]
        if not full:
            break
        exact.update({name: float(sizes[name]) for name in full})
        open_names = [name for name in open_names if name not in full]
    keeps = _whole(exact, kept, sizes)
    return {name: 1 - keeps[name] / sizes[name] for name in shapes}


def given(shapes: Shapes, sparsity: float, wanted: Mapping[str, float]) -> dict[str, float]:
    """Sparsity by exact name or "re:" pattern, first match wins; others get `sparsity`.

    Raises:
        TamisValueError: A key matches no layer or a value is outside [0, 1).
    """
    for key, value in wanted.items():
        if not isinstance(value, Real) or not 0 <= value < 1:
            raise TamisValueError(
                f"allocate.given: {key!r}: got sparsity {value!r}, wanted 0 <= sparsity < 1; "
                "give the fraction of zeros."
            )
        if not any(matches(key, name) for name in shapes):
            raise TamisValueError(
                f"allocate.given: got {key!r}, wanted the name of a pruned layer such as "
                f"{next(iter(shapes), 'none')!r}; correct the name or prefix a pattern with 're:'."
            )
    return {
        name: next((value for key, value in wanted.items() if matches(key, name)), sparsity)
        for name in shapes
    }


def matches(key: str, name: str) -> bool:
    """Whether `key`, an exact name or "re:" and a pattern matched from the start, names a layer.

    Raises:
        TamisValueError: The pattern is not a regular expression.
    """
    if not key.startswith("re:"):
        return key == name
    try:
        return re.match(key[3:], name) is not None
    except re.error as error:
        raise TamisValueError(
            f"targets: got {key!r} ({error}), wanted 're:' and a Python regular expression; "
            "correct the pattern."
        ) from error


def _whole(exact: Mapping[str, float], total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers next to `exact` that sum to `total`, by largest remainder within limits."""
    whole = {name: min(int(value), limits[name]) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: exact[name] - int(exact[name]), reverse=True)
    while (missing := total - sum(whole.values())) > 0:
        for name in [n for n in order if whole[n] < limits[n]][:missing]:
            whole[name] += 1
    return whole
