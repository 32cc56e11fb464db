"""Global and recent attention as one score, budgets per head, and merging instead of dropping.

Paper: Li et al., "EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on
    Global-Local Importance", 2024 (arXiv:2412.08521).
Differs: EMS-style: no code is public. The latest queries' attention is averaged over 7 tokens, on SmolLM2
    better on both axes than SnapKV's 5. Heads have equal parts of the budget, better there too than
    sharing it as in Ada-KV; of what leaves, three times as many tokens as stay may join; only values
    merge, and the mass goes to the attention score as a bias; after a prompt only.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import EVERY_QUERY, Evict, KvRecipe, Merge

RECIPE = KvRecipe(
    evict=Evict(
        kv_score.GlobalLocal(7),
        queries=EVERY_QUERY,
        local=32,
        recent=32,
        always=False,
        merge=Merge(above=0.3, candidates=3.0),
    )
)
