"""Drops the weights of smallest |weight| times input norm within each output row.

Paper: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models",
    2023 (arXiv:2306.11695), equation 1 and algorithm 1.
Differs: the norm is averaged per token, which changes no ranking; padded tokens are not counted.
"""

from tamis.policy import score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(
    score=score.wanda, select=select.keep_largest, group="row", needs=frozenset({"x_sq"})
)
