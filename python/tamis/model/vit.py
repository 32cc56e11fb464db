"""ViT: image encoder without token masks; patch embedding, pooler and classifier stay dense."""

from tamis.model.family import Family

FAMILY = Family(
    name="vit",
    blocks=("ViTLayer",),
    linears=(
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "fc1",
        "fc2",
        "query",
        "key",
        "value",
        "dense",
    ),
    head=("classifier",),
)
