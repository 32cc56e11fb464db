"""Attention of a prompt: tamis against torch SDPA, causal, in one interleaved run.

`python bench/prefill.py --tokens 4096` prints milliseconds and the ratio to the faster of torch's bf16
and f32, with the query heads of a KV head given a copy of its keys and with `enable_gqa`.
"""

import argparse
import time
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis.ops.prefill import Blocks, Pattern, Spans, Subset, prefill_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    cases = make_cases(a)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(a.turns):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    best = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    fastest = min(best[n] for n in best if n.startswith("torch"))
    print(f"{a.tokens} tokens, {a.threads} thread(s), medians of {a.turns} turns")
    for name, seconds in best.items():
        print(f"{name:24} {seconds * 1e3:8.1f} ms {fastest / seconds:6.2f}x")


def make_cases(a: argparse.Namespace) -> dict:
    """Calls by name."""
    torch.manual_seed(0)
    n, group = a.tokens, a.heads // a.kv_heads
    q = torch.randn(1, a.heads, n, a.head_dim)
    k, v = torch.randn(2, 1, a.kv_heads, n, a.head_dim)
    half = Subset(torch.randperm(n)[: n // 2].sort().values.int().view(1, -1))
    cases = {}
    for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        x = [t.to(dtype) for t in (q, k, v)]
        copied = [x[0], *(t.repeat_interleave(group, 1) for t in x[1:])]
        cases[f"torch {label}"] = partial(sdpa, *copied, is_causal=True)
        cases[f"torch {label} enable_gqa"] = partial(sdpa, *x, is_causal=True, enable_gqa=True)
        for name, pattern in (
            ("causal", Pattern()),
            ("15 % of blocks", Pattern(blocks=blocks(a, 0.15))),
            ("spans 64 + 512", Pattern(spans=spans(64, 512))),
            ("half the tokens", Pattern(rows=half, columns=half)),
        ):
            cases[f"{name} {label}"] = partial(prefill_attention, *x, pattern)
    return cases


def spans(sink: int, window: int) -> Spans:
    """The same for all heads."""
    return Spans(torch.tensor([sink], dtype=torch.int32), torch.tensor([window], dtype=torch.int32))


def blocks(a: argparse.Namespace, density: float, size: int = 64) -> Blocks:
    """The diagonal and random blocks below it, `density` of the causal ones, per KV head."""
    count = -(-a.tokens // size)
    offsets = torch.zeros(a.kv_heads, count + 1, dtype=torch.int32)
    rows: list[list[Tensor]] = [[] for _ in range(a.kv_heads)]
    for head, found in enumerate(rows):
        for i in range(count):
            extra = torch.randperm(i)[
                : round(density * (i + 1)) - 1 if density * (i + 1) > 1 else 0
            ]
            found.append(torch.cat([extra.sort().values, torch.tensor([i])]).int())
        offsets[head, 1:] = torch.tensor([len(r) for r in found]).cumsum(0)
    columns = torch.zeros(a.kv_heads, int(offsets.max()), dtype=torch.int32)
    for head, found in enumerate(rows):
        columns[head, : offsets[head, -1]] = torch.cat(found)
    return Blocks(size, offsets, columns)


if __name__ == "__main__":
    main()
