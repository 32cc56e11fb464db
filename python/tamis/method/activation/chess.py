"""Neurons by activated gate times the mean of the other half; inputs of q and o by magnitude.

Paper: He, Tan, Chen, Wang, Xue, "CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and
    Selective Sparsification", 2024 (arXiv:2409.01366), sections 3.2 and 3.3.
Differs: one histogram over all documents instead of a mean of their quantiles.
"""

from tamis.policy import activation
from tamis.recipe import ActivationRecipe

RECIPE = ActivationRecipe(
    neurons=activation.mean_up,
    inputs=("q", "o"),
    weigh=activation.even,
    needs=frozenset({"mean_up"}),
)
