"""From a name to a recipe."""

from __future__ import annotations

from importlib import import_module

from tamis import method as methods
from tamis.errors import TamisValueError
from tamis.policy.kv_recipe import KvRecipe


def recipe_of(method: str | KvRecipe) -> KvRecipe:
    """The recipe itself, or the one of that name.

    Raises:
        TamisValueError: There is no such method.
    """
    if isinstance(method, KvRecipe):
        return method
    known = methods.names("kv")
    if method not in known:
        raise TamisValueError(
            f"kv: method: got {method!r}, wanted one of {', '.join(known)}; correct the name or "
            "pass a KvRecipe of your own."
        )
    recipe: KvRecipe = import_module(f"tamis.method.kv.{method}").RECIPE
    return recipe
