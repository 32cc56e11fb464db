"""Activation sparsity: small activations count as zero, and the weights they meet are not read.

``calibrate`` finds thresholds on a little data, ``attach`` puts them into a model; the handle takes
them out again.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.activation.collect import calibrate
    from tamis.activation.handle import Handle, attach
    from tamis.activation.layers import InputSparseLinear, SparseMLP
    from tamis.activation.plan import Plan

_HOME = {
    "Handle": "handle",
    "InputSparseLinear": "layers",
    "Plan": "plan",
    "SparseMLP": "layers",
    "attach": "handle",
    "calibrate": "collect",
}

__all__ = ["Handle", "InputSparseLinear", "Plan", "SparseMLP", "attach", "calibrate"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tamis.activation.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tamis.activation' has no attribute {name!r}")
