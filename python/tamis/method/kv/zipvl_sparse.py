"""zipvl, and a prompt's attention runs among each layer's important tokens alone.

Paper: He, Chen, Zhang, Zhou, Zhuang et al., "ZipVL", 2024 (arXiv:2410.08584v1), algorithm 1 with its
    sparse attention in the prefill phase.
Differs: rows of other tokens get 0 from attention, so that their residual stream goes on; page layout
    as in zipcache.
"""

from tamis.policy.kv_recipe import Classes, KvRecipe

RECIPE = KvRecipe(classes=Classes(top_p=0.975, sparse_prefill=True))
