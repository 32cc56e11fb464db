"""Leaves out inputs whose magnitude times the norm of the weights they meet is small.

Paper: Chen et al., "WINA: Weight Informed Neuron Activation for Accelerating Large Language Model
    Inference", 2025 (arXiv:2505.19427), equation 3.
Differs: a calibrated threshold per layer instead of the largest k of each token, so that nothing is
    sorted while decoding; weights are not rotated.
"""

from tamis.policy import activation
from tamis.recipe import ActivationRecipe

RECIPE = ActivationRecipe(
    inputs=("q", "k", "v", "o", "gate", "up", "down"), weigh=activation.column_norm
)
