"""zipvl's important tokens as they came; the others leave the cache.

Paper: He, Chen, Zhang, Zhou, Zhuang et al., "ZipVL", 2024 (arXiv:2410.08584v2), where eviction takes
    the place of the lower precision.
Differs: whole pages of 64 tokens, so up to 63 more tokens stay; prompts are attended to densely.
"""

from tamis.policy.kv_recipe import Classes, KvRecipe

RECIPE = KvRecipe(classes=Classes(top_p=0.975, bits=16, other_bits=0))
