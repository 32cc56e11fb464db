"""Leaves out the neurons of gated MLPs whose activated gate is small: one threshold per layer.

Paper: Lee, Lee, Zhang, Tiwari, Mirhoseini, "CATS: Contextually-Aware Thresholding for Sparsity in
    Large Language Models", 2024 (arXiv:2404.08763), section 4.1.
Differs: padded tokens are not counted; bins are relative, 0.4 to 0.8 % wide.
"""

from tamis.policy import activation
from tamis.recipe import ActivationRecipe

RECIPE = ActivationRecipe(neurons=activation.even)
