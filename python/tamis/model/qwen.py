"""Qwen 2, 2.5 and 3 (dense)."""

from tamis.model.family import GATED_MLP, Family

FAMILY = Family(
    name="qwen",
    blocks=("Qwen2DecoderLayer", "Qwen3DecoderLayer"),
    linears=GATED_MLP,
    fusable=("Qwen2DecoderLayer",),  # Qwen 3 also normalizes q and k
    stacks=("Qwen2Model",),
)
