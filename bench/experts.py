"""Experts of a mixture: transformers' ways to multiply a stack of them beside one sparse linear each.

`python bench/experts.py --tokens 1 4 64` times one layer of Qwen3-30B-A3B's shape (top 8 of `--experts`,
random routes, half of the weights kept), all sides in turn, weights from memory.
"""

import argparse
import copy
from statistics import median
from time import perf_counter

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import tamis

ROUNDS = 15
WAYS = ("eager", "grouped_mm")  # batched_mm copies each token's experts: 50 ms for one token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 64])
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(hidden_size=2048, moe_intermediate_size=768, num_experts=a.experts)
    stack = Qwen3MoeExperts(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_(std=0.02)
    holder = torch.nn.Sequential(copy.deepcopy(stack))
    report = tamis.sparsify_(holder, "magnitude", sparsity=a.sparsity, pattern=a.pattern)
    formats = {row.format for row in report.layers}
    print(f"{a.experts} experts of 2048 x 768, bf16, {a.threads} threads, {' '.join(formats)}")
    for tokens in a.tokens:
        spent = times(stack, holder[0], tokens, a.experts)
        best = min(spent[way] for way in WAYS)
        line = "  ".join(f"{name} {ms:.3f}" for name, ms in spent.items())
        print(
            f"{tokens:4} tokens: {line} ms  {best / spent['tamis']:.2f} x the fastest", flush=True
        )


@torch.no_grad()
def times(stack, sparse, tokens: int, experts: int) -> dict[str, float]:
    """Median ms of each, every round with other tokens and routes."""
    spent: dict[str, list[float]] = {name: [] for name in (*WAYS, "tamis")}
    for _ in range(ROUNDS):
        x = torch.randn(tokens, 2048, dtype=torch.bfloat16)
        index = torch.rand(tokens, experts).topk(8).indices
        weights = torch.rand(tokens, 8).softmax(-1).to(torch.bfloat16)
        for name in spent:
            stack.config._experts_implementation = name
            module = sparse if name == "tamis" else stack
            begin = perf_counter()
            module(x, index, weights)
            spent[name].append(1e3 * (perf_counter() - begin))
    return {name: median(found[1:]) for name, found in spent.items()}


if __name__ == "__main__":
    main()
