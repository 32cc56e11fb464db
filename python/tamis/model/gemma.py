"""Gemma 1, 2 and 3: sliding-window blocks get their own masks and position embeddings."""

from tamis.model.family import GATED_MLP, Family

FAMILY = Family(
    name="gemma",
    blocks=("GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer"),
    linears=GATED_MLP,
)
