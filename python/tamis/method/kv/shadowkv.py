"""Keys of a prompt as a low-rank product before rotation; steps rebuild the chunks whose landmarks draw.

Paper: Sun et al., "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", 2024
    (arXiv:2410.21465), algorithms 1 and 2.
Differs: values stay where the cache is; odd chunks are three eighths of what is read instead of a fixed
    48; a plan of kind ranks sets each layer's rank by energy; a second prompt stays as it came.
"""

from tamis.policy.kv_recipe import KvRecipe, LowRank

RECIPE = KvRecipe(lowrank=LowRank(rank=1 / 6, chunk=8))
