"""Drops the weights that ADMM finds, mask and values together, then improves the values on the mask.

Paper: Meng, Behdin, Wang, Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning
    for Large Language Models", 2024 (arXiv:2406.07831), sections 3.1 and 3.2.
Differs: it ends once at most 0.5 % of the mask moves in three steps, which loses nothing measurable
    to the authors' 0.03 %, and never starts again with a smaller penalty; the Hessian is factored
    anew for each penalty, some nine times, which takes less than the eigenvectors that would serve
    them all; dead inputs lose their weights; exact counts.
"""

from tamis.policy import repair, score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(
    score=score.wanda,
    select=select.keep_largest,
    group="layer",
    repair=repair.admm,
    needs=frozenset({"hessian"}),
    damping=0.01,
)
