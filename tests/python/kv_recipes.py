"""Recipes and budgets of the cache's methods, as tests compare them."""

from dataclasses import replace

from tamis.kv.methods import recipe_of
from tamis.policy.kv_layout import LocalStride
from tamis.policy.kv_recipe import KvRecipe


def in_16_bits(recipe: KvRecipe) -> KvRecipe:
    """The recipe with nothing given up but by a budget: what else it does, to compare."""
    if recipe.quantize is not None:
        recipe = replace(recipe, quantize=replace(recipe.quantize, key_bits=16, value_bits=16))
    if recipe.classes is not None:
        whole = replace(recipe.classes, top_p=1.0, share=0.0, bits=16)
        recipe = replace(recipe, classes=whole)
    if recipe.pattern is not None:
        everything = LocalStride(local=1 << 20, block=64)
        recipe = replace(recipe, pattern=replace(recipe.pattern, layout=everything))
    if recipe.lowrank is not None:
        recipe = replace(recipe, lowrank=replace(recipe.lowrank, rank=1.0))
    return recipe


def budget_of(method: str | KvRecipe, budget: int | None) -> int | None:
    """The budget where the method has one, else None."""
    recipe = recipe_of(method)
    return budget if recipe.budgeted else None
