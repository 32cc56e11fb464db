"""Tiny models and small helpers for the tests of save, load and convert."""

from __future__ import annotations

import torch
from torch import nn

import tamis

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}


def tiny(family="llama", dtype=torch.float32, seed=0, **options):
    """A random transformers model; every parameter is random, norms and biases too."""
    import transformers

    name = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[family]
    config = getattr(transformers, name)(**{**SMALL, **options})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * 0.1 + (param.ndim == 1))
    return model


def sparse(family="llama", dtype=torch.float32, sparsity=0.5, pattern="unstructured", **options):
    keys = ("format", "ignore")
    chosen = {key: options.pop(key) for key in keys if key in options}
    model = tiny(family, dtype, **options)
    tamis.sparsify_(model, "magnitude", sparsity=sparsity, pattern=pattern, **chosen)
    return model


class Net(nn.Module):
    """Not a transformers model: a tied weight, a buffer, a convolution, layers with and without bias."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(32, 64)
        self.conv = nn.Conv1d(64, 64, 1)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)
        self.head = nn.Linear(64, 32, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.randn(64))

    def forward(self, ids):
        x = self.conv(self.embed(ids).mT).mT
        return self.head(self.down(self.up(x + self.shift).relu()))


def sparse_net(dtype=torch.float32):
    net = Net().to(dtype).eval()
    for name in ("up", "down"):
        linear = getattr(net, name)
        keep = linear.weight.abs() > linear.weight.abs().median()
        setattr(net, name, tamis.nn.SparseLinear.from_linear(linear, keep=keep, format="bitmap"))
    return net


def tokens():
    return torch.arange(24).reshape(2, 12)


@torch.no_grad()
def logits(model):
    out = model(tokens())
    return getattr(out, "logits", out)


def same_state(a, b):
    """Whether two models hold the same names, dtypes and bits."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def snapshot(folder):
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
