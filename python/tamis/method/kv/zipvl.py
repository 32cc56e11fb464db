"""Tokens that get 97.5 % of the probes' attention in 4 bits, the others in 2, per layer and input.

Paper: He, Chen, Zhang, Zhou, Zhuang et al., "ZipVL: Efficient Large Vision-Language Models with
    Dynamic Token Sparsification and KV Cache Compression", 2024 (arXiv:2410.08584v1), algorithm 1.
Differs: prompts are attended to densely (zipvl_sparse does not); page layout as in zipcache.
"""

from tamis.policy.kv_recipe import Classes, KvRecipe

RECIPE = KvRecipe(classes=Classes(top_p=0.975))
