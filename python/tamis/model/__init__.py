"""Model families: where each keeps its blocks; the only knowledge of Hugging Face classes."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from tamis.model.family import Family

if TYPE_CHECKING:
    from torch import nn


@cache
def families() -> tuple[Family, ...]:
    """Every family that a module of this package declares as FAMILY."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of(model: nn.Module) -> Family | None:
    """The family whose blocks the model holds, or None: then it is treated as one block."""
    present = {type(module).__name__ for module in model.modules()}
    return next((f for f in families() if present.intersection(f.blocks)), None)
