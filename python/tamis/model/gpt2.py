"""GPT-2: learned positions, biases, linears that are Conv1D with q, k and v in one."""

from tamis.model.family import Family

FAMILY = Family(
    name="gpt2",
    blocks=("GPT2Block",),
    linears=("c_attn", "c_proj", "c_fc", "q_attn"),
)
