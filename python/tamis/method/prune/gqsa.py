"""Drops groups of 16 inputs and stores the others as 4-bit codes, block by block retrained.

Paper: Zeng, Liu, Xie, Liu, Chen, Wu, "GQSA: Group Quantization and Sparsity for Accelerating Large
    Language Model Inference", 2024 (arXiv:2412.17560), sections 3.1 and 3.2: saliency
    w² / [H⁻¹]_jj² summed over a group, min-max codes per group, block reconstruction (BQPO).
Differs: the diagonal of the inverse Hessian's Cholesky factor scores a weight, as SparseGPT's does,
    and its sweep moves the kept weights before they are trained; groups compete within a layer;
    scales follow from the weights at every step instead of being trained; no second, end-to-end
    stage.
"""

from tamis.policy import repair, score, select
from tamis.recipe import Pattern, PruneRecipe, Reconstruct

RECIPE = PruneRecipe(
    score=score.obs,
    select=select.keep_largest,
    group="layer",
    repair=repair.obs_sweep,
    needs=frozenset({"hessian"}),
    damping=0.01,
    pattern=Pattern("block", rows=1, cols=16),
    format="groupq",
    recover=Reconstruct(steps=32, samples=4, lr=5e-4),
)
