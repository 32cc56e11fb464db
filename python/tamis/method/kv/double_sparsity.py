"""All tokens stay; a step reads 1/16 of them, chosen by the scores over a quarter of the channels.

Paper: Yang, Sheng, Gonzalez, Stoica, Zheng, "Post-Training Sparse Attention with Double Sparsity",
    2024 (arXiv:2408.07092), section 3.
Differs: without a plan of kind channels, the channels are those of the prompt itself; one choice per
    KV head, by the largest weight in its group's query heads; the latest 16 tokens are always read.
"""

from tamis.policy.kv_recipe import KvRecipe, Labels, Select

RECIPE = KvRecipe(select=Select(by=Labels(4), recent=16))
