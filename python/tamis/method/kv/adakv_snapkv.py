"""SnapKV's scores, but the heads of a layer compete for its budget: each holds its own number.

Paper: Feng, Lv, Cao, Xie, Zhou, "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation
    for Efficient LLM Inference", 2024 (arXiv:2407.11550), algorithm 1; scores of arXiv:2404.14469.
Differs: the safeguard is a fifth of an equal part that each head fills by its own best, not a mean of
    both counts; one choice per KV head, from the mean over the query heads of its group.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import Evict, KvRecipe

RECIPE = KvRecipe(
    evict=Evict(kv_score.PooledAttention(5), queries=32, recent=32, always=False, floor=0.2)
)
