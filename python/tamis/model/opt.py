"""OPT: learned positions, biases, a two-layer MLP that flattens its tokens."""

from tamis.model.family import Family

FAMILY = Family(
    name="opt",
    blocks=("OPTDecoderLayer",),
    linears=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
)
