"""Drops the weights of smallest magnitude within each output row.

Paper: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
    Networks", 2015 (arXiv:1506.02626), section 3.
Differs: one shot, no retraining; rows compete within themselves, which loses less than a threshold
    per layer; exact counts instead of a threshold.
"""

from tamis.policy import score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(score=score.magnitude, select=select.keep_largest, group="row")
