"""What a fused model's look at whatever may have changed costs: in cache, and behind a token.

`python bench/watch.py` makes a random model of SmolLM2's shape, half of its groups of 16 kept as 4-bit
codes, and prints medians in microseconds: a look right after another, one after 40 MB were read, one
after a token, and a token, look and output layer included.
"""

import statistics
import time
from collections.abc import Callable

import torch
import transformers as hf

import tamis
from tamis.nn import decoder

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
ROUNDS = 60


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE)).eval().bfloat16()
    tamis.sparsify_(model, "magnitude", pattern="block:1x16", format="groupq")
    tamis.fuse_decode_(model)
    cache = hf.DynamicCache(config=model.config)
    token = torch.ones(1, 1, dtype=torch.long)

    def step() -> None:
        model(token, past_key_values=cache)

    for _ in range(3):
        step()
    plan = model.model.__dict__[decoder._PLAN]
    other = torch.randn(10 << 20)
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        times.setdefault(name, []).append((time.perf_counter() - start) * 1e6)

    def look() -> None:
        if not plan.holds(torch.bfloat16):
            raise RuntimeError("the plan is void: nothing was changed, so it should hold")

    for _ in range(ROUNDS):
        look()
        timed("a look after a look", look)
        other.sum()
        timed("after 40 MB", look)
        timed("a token", step)
        timed("a look after a token", look)
    for name, each in times.items():
        print(f"{name:22} {statistics.median(each):7.0f} us")


if __name__ == "__main__":
    main()
