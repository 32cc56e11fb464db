"""Drops weights at random within each output row: the floor every method must beat.

Paper: Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022 (arXiv:2202.02643),
    section 3.1 (with allocate="erk" for its layer-wise rates).
Differs: applied to trained weights, not before training; exact count per row.
"""

from tamis.policy import score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(score=score.random, select=select.keep_largest, group="row")
