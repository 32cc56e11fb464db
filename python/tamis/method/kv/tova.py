"""What the latest token attends to.

Paper: Oren, Hassid, Yarden, Adi, Schwartz, "Transformers are Multi-State RNNs", 2024
    (arXiv:2401.06104), section 3.2.
Differs: one choice per KV head, from the mean over the query heads of its group, instead of one per
    layer.
"""

from tamis.policy import kv_score
from tamis.policy.kv_recipe import Evict, KvRecipe

RECIPE = KvRecipe(evict=Evict(score=kv_score.attention, queries=1))
