"""Drops the weights whose loss is smallest and updates the others to make up for it.

Paper: Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    2023 (arXiv:2301.00774), algorithm 1.
Differs: the Hessian is averaged per token (damping is relative, so nothing changes) and factored in
    f64; the tiles' counts add up to the exact count of the layer; masks stay explicit.
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
