"""Published methods as data, found by module name: `tamis.method.load("wanda")`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tamis.errors import TamisValueError
from tamis.recipe import PruneRecipe


def names(kind: str = "prune") -> list[str]:
    """Names of the methods of one kind, sorted."""
    package = import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name: str, kind: str = "prune") -> PruneRecipe:
    """The recipe of a method by its module name.

    Raises:
        TamisValueError: There is no such method.
    """
    if name not in names(kind):
        raise TamisValueError(
            f"method.load: name: got {name!r}, wanted one of {', '.join(names(kind))}; "
            "correct the name or pass a PruneRecipe of your own."
        )
    recipe: PruneRecipe = import_module(f"{__name__}.{kind}.{name}").RECIPE
    return recipe
