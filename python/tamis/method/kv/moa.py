"""A window of its own for each head, as calibration found: ``alpha + beta * tokens``, beside a sink.

Paper: Fu et al., "MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression",
    2024 (arXiv:2406.14909), sections 3 and 4.
Differs: one window per KV head; the plan weighs the calibrated lengths alike instead of choosing from
    a Pareto set by an unseen length.
"""

from tamis.policy.kv_recipe import KvRecipe, Pattern

RECIPE = KvRecipe(pattern=Pattern(layout=None))
