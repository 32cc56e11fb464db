"""The tokens that drew most attention so far, beside the latest ones.

Paper: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
    Models", 2023 (arXiv:2306.14048), algorithm 1.
Differs: a fixed number of recent tokens instead of half the budget; one choice per KV head, from the
    mean over the query heads of its group.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import EVERY_QUERY, Evict, KvRecipe

RECIPE = KvRecipe(evict=Evict(score=kv_score.attention, queries=EVERY_QUERY, recent=32))
