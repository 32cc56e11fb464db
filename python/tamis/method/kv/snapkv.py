"""Of the prompt: what its last 32 tokens attend to, in clusters; what is generated stays.

Paper: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", 2024
    (arXiv:2404.14469), section 4.
Differs: one choice per KV head, from the mean over the query heads of its group.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import Evict, KvRecipe

RECIPE = KvRecipe(
    evict=Evict(score=kv_score.PooledAttention(5), queries=32, recent=32, always=False)
)
