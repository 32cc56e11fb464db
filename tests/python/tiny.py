"""Tiny random models of every family, and inputs for them."""

from __future__ import annotations

import torch
import transformers as hf

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 97,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "max_position_embeddings": 64}
WITH_HEADS = {**GROUPED, "head_dim": 8}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 97,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA3 = {
    **WITH_HEADS,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
VIT = {k: v for k, v in COMMON.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 4}

FAMILIES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**WITH_HEADS)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**WITH_HEADS)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**WITH_HEADS, sliding_window=4)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA3)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**WITH_HEADS, sliding_window=4)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**COMMON, max_position_embeddings=64)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
}
LINEARS = {"gpt2": 4, "opt": 6, "bert": 6, "vit": 6}  # per block; gated families have 7


def tiny(family: str, seed: int = 0) -> torch.nn.Module:
    """A random model in evaluation mode; its norms differ from one, its biases from zero."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)  # so that attention and pruning leave a mark on the outputs
    return model


def inputs(family: str, seed: int = 1, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    """Three samples; token models get batches of two, the second row padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return [{"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)} for _ in range(3)]
    samples = []
    for length in (12, 9, 12):
        ids = torch.randint(3, 97, (2, length), generator=generator)
        mask = torch.ones(2, length, dtype=torch.long)
        if padded:
            mask[1, :4] = 0
        samples.append({"input_ids": ids, "attention_mask": mask})
    return samples


def logits(model: torch.nn.Module, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """Output scores."""
    with torch.no_grad():
        return model(**sample).logits
