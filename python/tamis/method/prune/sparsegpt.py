"""Drops the weights whose loss is smallest and updates the others to make up for it.

Paper: Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    2023 (arXiv:2301.00774), algorithm 1.
Differs: the Hessian is a mean per token, not 2/sequences times the sum (damping is relative, so this
    only shows in the weight of a dead input's unit diagonal); it is factored in f64; the tiles'
    counts add up to the exact count of the layer; masks stay explicit.
"""

from tamis.policy import repair, score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(
    score=score.obs,
    select=select.keep_largest,
    group="tile",
    repair=repair.obs_sweep,
    needs=frozenset({"hessian"}),
    damping=0.01,
)
