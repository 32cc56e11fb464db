"""Local blocks and every eighth block, shifted from head to head; other blocks leave the cache.

Paper: Lin, Zhang et al., "S2-Attention: Hardware-Aware Context Sharding Among Attention Heads", 2024
    (arXiv:2407.17678), section 3; block 64, 16 local blocks, stride 8 and alternate dense layers as
    in Phi-3-small.
Differs: for models trained so; others lose what the pattern hides.
"""

from tamis.policy.kv_layout import LocalStride
from tamis.policy.kv_recipe import KvRecipe, Pattern

RECIPE = KvRecipe(pattern=Pattern(LocalStride(local=16, stride=8, block=64), dense_every=2))
