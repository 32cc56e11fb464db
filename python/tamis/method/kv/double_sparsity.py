"""All tokens stay; a step reads 1/16 of them, chosen by the scores over a quarter of the channels.

Paper: Yang, Sheng, Gonzalez, Stoica, Zheng, "Post-Training Sparse Attention with Double Sparsity",
    2024 (arXiv:2408.07092), section 3.
Differs: the channels are those of the prompt itself instead of an offline calibration; one
    choice per KV head, by the largest weight in its group's query heads.
"""

from tamis.policy.kv_recipe import KvRecipe, Labels, Select

RECIPE = KvRecipe(select=Select(by=Labels(4)))
