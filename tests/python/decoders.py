"""Small models that fuse_decode_ takes, and steps of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as hf

import tamis

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**CONFIG)),
    "llama with biases": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**CONFIG, attention_bias=True, mlp_bias=True)
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**CONFIG)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**CONFIG, sliding_window=None)),
}
PRUNED: dict[str, dict[str, Any]] = {
    "bitmap": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
    "W4": {"pattern": "block:1x16", "format": "groupq"},
}


def make(family: str = "llama", pruned: str = "bitmap", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model: Any = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tamis.sparsify_(model.to(dtype), "magnitude", **PRUNED[pruned])
    return model


def start(model: Any, batch: int = 1) -> tuple[torch.Tensor, Any]:
    ids = torch.randint(1, 90, (batch, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True)
    return ids[:, :1], cache_of(out)


def cache_of(out: Any) -> Any:
    return out.cache if hasattr(out, "cache") else out.past_key_values


def steps(model: Any, token: torch.Tensor, cache: Any, **kwargs: Any) -> torch.Tensor:
    """Logits of four tokens, each after the last."""
    cache, logits = copy.deepcopy(cache), []
    with torch.no_grad():
        for i in range(4):
            out = model(input_ids=token + i, past_key_values=cache, use_cache=True, **kwargs)
            logits.append(out.logits[:, -1])
    return torch.stack(logits)
