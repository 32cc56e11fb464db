"""Drops the weights of smallest magnitude of each layer.

Paper: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
    Networks", 2015 (arXiv:1506.02626), section 3.
Differs: one shot, no retraining; exact counts instead of a multiple of the standard deviation.
"""

from tamis.policy import score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(score=score.magnitude, select=select.keep_largest, group="layer")
