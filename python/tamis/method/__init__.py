"""Published methods as data, found by module name: `tamis.method.load("wanda")`."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TypeVar

from tamis.errors import TamisValueError
from tamis.recipe import PruneRecipe

Recipe = TypeVar("Recipe")


def names(kind: str = "prune") -> list[str]:
    """Names of the methods of one kind, sorted."""
    package = import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name: str, kind: str = "prune") -> PruneRecipe:
    """The recipe of a method by its module name.

    Raises:
        TamisValueError: There is no such method.
    """
    return recipe_of(name, kind, PruneRecipe, "method.load: name")


def recipe_of(method: str | Recipe, kind: str, made_of: type[Recipe], where: str) -> Recipe:
    """The recipe itself, or the one of that name.

    Args:
        method: Name or recipe.
        kind: Of the methods.
        made_of: Class of their recipes.
        where: Function and argument, for the error.

    Raises:
        TamisValueError: There is no such method.
    """
    if isinstance(method, made_of):
        return method
    known = names(kind)
    if method not in known:
        got = repr(method) if isinstance(method, str) else type(method).__name__
        raise TamisValueError(
            f"{where}: got {got}, wanted one of {', '.join(known)}; correct the name or pass a "
            f"{made_of.__name__} of your own."
        )
    recipe: Recipe = import_module(f"{__name__}.{kind}.{method}").RECIPE
    return recipe
