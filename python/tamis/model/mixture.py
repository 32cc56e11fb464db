"""Mixtral, gpt-oss and Qwen's mixtures: routers stay dense, each expert is two linears."""

from tamis.model.family import EXPERT, GATED_MLP, Family

FAMILY = Family(
    name="mixture",
    blocks=(
        "MixtralDecoderLayer",
        "GptOssDecoderLayer",
        "Qwen2MoeDecoderLayer",
        "Qwen3MoeDecoderLayer",
    ),
    linears=(*GATED_MLP, *EXPERT),
)
