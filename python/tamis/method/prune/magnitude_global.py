"""Drops the weights of smallest magnitude of the whole model.

Paper: Jaiswal, Liu, Chen, Wang, "The Emergence of Essential Sparsity in Large Pre-trained Models",
    2023 (arXiv:2306.03805), section 3: one-shot magnitude with one threshold for all layers.
Differs: exact count instead of a threshold; only the linears chosen compete, never embeddings.
"""

from tamis.policy import score, select
from tamis.recipe import PruneRecipe

RECIPE = PruneRecipe(score=score.magnitude, select=select.keep_largest, group="global")
