"""What each KV method costs in quality on SmolLM2: KL to the full cache, next tokens, bytes.

`python bench/kv_quality.py --text TEXT` compresses a prompt, then feeds the text on token by token,
so that every figure is about decoding on the compressed cache. Perplexity is left out on purpose: it
ranks methods by how little they disturb the easy tokens.
"""

import argparse

import torch
from torch import Tensor
from transformers import DynamicCache

from tamis import commands, corpus, kv, source

CASES = (
    ("full", None),
    ("kivi8", None),
    ("kivi4", None),
    ("kivi2", None),
    ("streaming", 256),
    ("h2o", 256),
    ("snapkv", 256),
    ("tova", 256),
    ("key_norm", 256),
    ("quest", 64),
    ("quest", 128),
    ("double_sparsity", 64),
    ("double_sparsity", 128),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", help="text file")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=31)
    parser.add_argument("--skip", type=int, default=20000, help="characters at the start")
    parser.add_argument("--only", nargs="*")
    a = parser.parse_args()
    commands.quiet()
    opened = source.open_model(a.model, dtype="f32")
    text = corpus.default_text("evaluate", a.text)[1][a.skip :]
    ids = opened.tokenizer(text[: 20 * (a.prompt + a.tokens)], return_tensors="pt")["input_ids"]
    ids = ids[:, : a.prompt + a.tokens]
    model = opened.model.eval()
    full = decode(model, ids, a.prompt, DynamicCache(config=model.config))
    print(
        f"prompt of {a.prompt}, {a.tokens} tokens more\nmethod           budget     KL  same  bytes/f16"
    )
    with kv.attach(model):
        for method, budget in CASES:
            if a.only and method not in a.only:
                continue
            cache = kv.Cache(model.config, method, budget=budget)
            found = decode(model, ids, a.prompt, cache)
            kl = (full.exp() * (full - found)).sum(-1).mean()
            same = (found.argmax(-1) == full.argmax(-1)).float().mean()
            share = cache.nbytes() / f16_bytes(model.config, ids.shape[1])
            print(f"{method:16} {budget or '':6} {kl:7.4f} {same:5.2f} {share:8.3f}", flush=True)


@torch.no_grad()
def decode(model: torch.nn.Module, ids: Tensor, prompt: int, cache: DynamicCache) -> Tensor:
    """Log-probabilities [tokens + 1, vocabulary] after the prompt and after every later token."""
    logits = [model(ids[:, :prompt], past_key_values=cache).logits[:, -1]]
    for t in range(prompt, ids.shape[1]):
        logits.append(model(ids[:, t : t + 1], past_key_values=cache).logits[:, -1])
    return torch.cat(logits).float().log_softmax(-1)


def f16_bytes(config: object, tokens: int) -> int:
    """Bytes of a plain cache in 16 bits."""
    head_dim = config.hidden_size // config.num_attention_heads
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head_dim * tokens


if __name__ == "__main__":
    main()
