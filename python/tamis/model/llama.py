"""Llama and models stored as Llama (SmolLM2, TinyLlama, Yi)."""

from tamis.model.family import GATED_MLP, Family

FAMILY = Family(
    name="llama",
    blocks=("LlamaDecoderLayer",),
    linears=GATED_MLP,
    fusable=("LlamaDecoderLayer",),
    stacks=("LlamaModel",),
)
