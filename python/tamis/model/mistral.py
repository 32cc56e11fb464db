"""Mistral 7B and its relatives."""

from tamis.model.family import GATED_MLP, Family

FAMILY = Family(
    name="mistral",
    blocks=("MistralDecoderLayer",),
    linears=GATED_MLP,
    fusable=("MistralDecoderLayer",),
    stacks=("MistralModel",),
)
