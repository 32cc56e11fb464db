"""All tokens stay; a step reads the pages of 16 whose largest possible score is largest.

Paper: Tang, Zhao, Zhu, Xiao, Kasikci, Han, "Quest: Query-Aware Sparsity for Efficient Long-Context
    LLM Inference", 2024 (arXiv:2406.10774), section 3.3.
Differs: a query head also sees what the other heads of its KV head chose, as those pages are read at
    any rate; the first page is always read, as it holds the attention sink: on SmolLM2 that takes half
    off the KL.
"""

from tamis.policy.kv_recipe import KvRecipe, Pages, Select

RECIPE = KvRecipe(select=Select(by=Pages(16), sink=1, each_head=True))
