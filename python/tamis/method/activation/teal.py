"""Leaves out the small inputs of every linear layer: one threshold per layer.

Paper: Liu, Ponnusamy, Cai, Guo, Kim, Athiwaratkun, "Training-Free Activation Sparsity in Large
    Language Models", 2024 (arXiv:2408.14690), sections 4.1 and 5.1.
Differs: uniform over layers, without the greedy search; the quantile is of magnitudes, not of a
    symmetric model of signed values.
"""

from tamis.policy import activation
from tamis.recipe import ActivationRecipe

RECIPE = ActivationRecipe(inputs=("q", "k", "v", "o", "gate", "up", "down"), weigh=activation.even)
