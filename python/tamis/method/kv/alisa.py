"""All tokens stay; a step reads the latest and those that drew most attention lately, alike in all heads.

Paper: Zhao, Wu, Wang, "ALISA: Accelerating Large Language Model Inference via Sparsity-Aware KV
    Caching", 2024 (arXiv:2403.17312), algorithm 1; its placement in tiers is tamis.policy.kv_tiers.
Differs: rows of attention leave the window an eighth of it at a time.
"""

from tamis.policy.kv_recipe import KvRecipe, Select, WindowSum

RECIPE = KvRecipe(select=Select(by=WindowSum(), skip_layers=0, fraction=0.2))
