"""Every token as it came, read by the decode kernel.

Paper: none; the baseline that every other method is compared with.
Differs: in nothing from attention but the order of sums.
"""

from tamis.policy.kv_recipe import KvRecipe

RECIPE = KvRecipe()
