"""The first tokens and the latest ones.

Paper: Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks",
    2023 (arXiv:2309.17453), section 3.2.
Differs: tokens keep the positions they were rotated with, instead of places within the cache.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import Evict, KvRecipe

RECIPE = KvRecipe(evict=Evict(score=kv_score.recency, sink=4))
