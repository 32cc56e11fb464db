"""All tokens stay; a step reads the pages of 16 whose largest possible score is largest.

Paper: Tang, Zhao, Zhu, Xiao, Kasikci, Han, "Quest: Query-Aware Sparsity for Efficient Long-Context
    LLM Inference", 2024 (arXiv:2406.10774), section 3.3.
Differs: one choice per KV head, by the largest bound of its group's query heads; the first page is
    always read, as it holds the attention sink: on SmolLM2 that takes three quarters off the KL.
"""

from tamis.policy.kv_recipe import KvRecipe, Pages, Select

RECIPE = KvRecipe(select=Select(by=Pages(16), sink=1))
