"""The keys of smallest norm: no attention is looked at.

Paper: Devoto, Zhao, Scardapane, Minervini, "A Simple and Effective L2 Norm-Based Strategy for KV
    Cache Compression", 2024 (arXiv:2406.11430), section 3.
Differs: every layer is compressed; the paper leaves the first two alone.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import Evict, KvRecipe

RECIPE = KvRecipe(evict=Evict(score=kv_score.key_norm))
