"""From a name to a recipe, and whether a budget fits it."""

from __future__ import annotations

from operator import index
from typing import SupportsIndex

from tamis import method as methods
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv.plan import LayerPlan, Plan
from tamis.policy.kv_recipe import KvRecipe, Pages


def recipe_of(method: str | KvRecipe) -> KvRecipe:
    """The recipe itself, or the one of that name.

    Raises:
        TamisValueError: There is no such method.
    """
    return methods.recipe_of(method, "kv", KvRecipe, "kv: method")


def check_plan(recipe: KvRecipe, plan: LayerPlan | None) -> None:
    """Refuses a plan that a recipe does not take, and a recipe without the plan that it needs.

    Raises:
        TamisValueError: One of these.
        TamisTypeError: What was passed is no plan.
    """
    taken = recipe.plans
    if not isinstance(plan, Plan | LayerPlan | None):
        raise TamisTypeError(
            f"kv: plan: got {type(plan).__name__}, wanted plan.of_layer(i) of a kv.Plan; make it by "
            "kv.calibrate."
        )
    if isinstance(plan, Plan):
        raise TamisValueError(
            f"kv: plan: got one of {len(plan.layers)} layers, wanted a layer's; pass plan.of_layer(i)."
        )
    if plan is None:
        if recipe.needs_plan:
            raise TamisValueError(
                f"kv: plan: got none, wanted one of kind {taken!r}; make it by "
                f"kv.calibrate(model, texts, kind={taken!r}) and pass plan=."
            )
        return
    if plan.kind != taken:
        raise TamisValueError(
            f"kv: plan: got one of kind {plan.kind!r}, wanted "
            f"{'none' if taken is None else repr(taken)}: that is what this method takes."
        )


def check_budget(recipe: KvRecipe, budget: SupportsIndex | None) -> int | None:
    """The budget as an int; refuses those that a recipe cannot keep.

    Raises:
        TamisValueError: Missing, below 1, below sink + recent, no multiple of the page, or given
            where nothing uses it.
        TamisUnsupported: The recipe combines quantization with eviction or selection.
    """
    chooser = recipe.evict or recipe.select
    budget = _whole(budget)
    _check_lowrank(recipe, budget)
    if recipe.quantize is not None and chooser is not None:
        raise TamisUnsupported(
            "kv: recipe: got quantization with eviction or selection, wanted one of them; pages "
            "are read whole."
        )
    if budget is None:
        if recipe.evict is not None:
            raise TamisValueError(
                "kv: budget: got none, wanted the tokens per KV head that may stay; pass budget=."
            )
        return None
    if chooser is None:
        if recipe.lowrank is not None:
            return budget
        why = (
            "keeps and reads every token"
            if recipe.pattern is None
            else "goes by its pattern or plan"
        )
        raise TamisValueError(f"kv: budget: got {budget}, wanted none: this method {why}.")
    least = max(1, chooser.sink + chooser.recent)
    if budget < least:
        raise TamisValueError(
            f"kv: budget: got {budget}, wanted at least {least}: {chooser.sink} first and "
            f"{chooser.recent} latest tokens always count."
        )
    page = recipe.select.by.page if recipe.select and isinstance(recipe.select.by, Pages) else 1
    if budget % page:
        raise TamisValueError(
            f"kv: budget: got {budget}, wanted a multiple of {page}: this method reads whole pages."
        )
    return budget


def _whole(budget: SupportsIndex | None) -> int | None:
    """NumPy's integers too."""
    if budget is None:
        return None
    if not isinstance(budget, SupportsIndex) or isinstance(budget, bool):
        raise TamisValueError(
            f"kv: budget: got {budget!r}, wanted a whole number of tokens; pass an int."
        )
    return index(budget)


def _check_lowrank(recipe: KvRecipe, budget: int | None) -> None:
    how = recipe.lowrank
    if how is not None and budget is not None and (budget < how.chunk or budget % how.chunk):
        raise TamisValueError(
            f"kv: budget: got {budget}, wanted a multiple of {how.chunk}: this method reads whole "
            "chunks."
        )
