"""KIVI's layout in 8 bits: half of f16, and hardly an error.

Paper: Liu et al., "KIVI", 2024 (arXiv:2402.02750), algorithm 1.
Differs: 8 bits, which the paper does not show; else as kivi4.
"""

from tamis.policy.kv_recipe import KvRecipe, Quantize

RECIPE = KvRecipe(quantize=Quantize(key_bits=8, value_bits=8))
