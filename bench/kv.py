"""Decode attention of one token on cold data: tamis against torch SDPA, in one interleaved run.

`python bench/kv.py --tokens 16384` prints milliseconds, GB/s of the bytes read with their share of a
plain read, and two ratios: to the faster of torch's `enable_gqa` forms (f32, bf16), and to the fastest
form of all, which may be the one that takes a KV head's query heads as rows.
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis import _C
from tamis.kv.kv_store import KvStore
from tamis.kv.methods import recipe_of
from tamis.kv.rows import Rows
from tamis.ops.attention import DenseSegment, PageSegment, sparse_attention
from tamis.ops.kv_quantize import kv_quantize, page_layout
from tamis.policy.kv_recipe import KvRecipe

COLD = 600 << 20  # bytes of copies that a case walks through, beyond any last-level cache
PLAIN_EVERY = 40  # turns between plain reads of as many bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="*")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    cases = {n: c for n, c in make_cases(a).items() if not a.only or n in a.only or "torch" in n}
    times: dict[str, list[float]] = {name: [] for name in cases}
    stream = []
    end = time.monotonic() + a.seconds
    turn = 0
    while time.monotonic() < end or turn < 5:
        for name, (copies, _) in cases.items():
            start = time.perf_counter()
            copies[turn % len(copies)]()
            times[name].append(time.perf_counter() - start)
        if turn % PLAIN_EVERY == 0:
            stream.append(_C.stream_read(a.threads, COLD))
        turn += 1
    plain = sorted(stream)[len(stream) // 2]
    best = {name: sorted(t)[len(t) // 5] for name, t in times.items()}
    gqa = min(best["torch f32"], best["torch bf16"])
    fastest = min(best[n] for n in best if n.startswith("torch"))
    print(f"{a.tokens} tokens, {a.threads} thread(s), plain read {plain:.1f} GB/s, {turn} turns")
    for name, seconds in best.items():
        rate = cases[name][1] / seconds / 1e9
        print(
            f"{name:15} {seconds * 1e3:8.3f} ms {rate:6.1f} GB/s {rate / plain:5.0%} of plain"
            f" {gqa / seconds:6.2f}x enable_gqa {fastest / seconds:6.2f}x fastest torch"
        )


def make_cases(a: argparse.Namespace) -> dict:
    """Per name: calls on copies of the data, and the bytes that one reads."""
    cases = {}
    q = torch.randn(1, a.heads, 1, a.head_dim)
    for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        x = q.to(dtype)
        k, v = torch.randn(2, 1, a.kv_heads, a.tokens, a.head_dim).to(dtype)
        size = 2 * k.numel() * k.element_size()
        pairs = [(held(k), held(v)) for _ in copies(size)]
        rows = x.view(1, a.kv_heads, -1, a.head_dim)  # as transformers packs masked decoding
        cases[f"torch {label} rows"] = [partial(sdpa, rows, *kv) for kv in pairs], size
        cases[f"torch {label}"] = [partial(sdpa, x, *kv, enable_gqa=True) for kv in pairs], size
        cases[f"dense {label}"] = (
            [partial(sparse_attention, x, [DenseSegment(*kv)]) for kv in pairs],
            size,
        )
    for bits in (8, 4, 2):
        layout = page_layout(a.head_dim, bits, bits)
        out = torch.empty(1, a.kv_heads, a.tokens // 32, layout.nbytes, dtype=torch.uint8)
        kv_quantize(k, v, layout, out)
        segments = [PageSegment(held(out), layout) for _ in copies(out.numel())]
        calls = [partial(sparse_attention, x, [segment]) for segment in segments]
        cases[f"{bits}-bit"] = calls, out.numel()
    together = recipe_of("quest")
    together = replace(together, select=replace(together.select, each_head=False))
    chosen = {"quest": "quest", "quest, group": together, "double_sparsity": "double_sparsity"}
    for name, method in chosen.items():  # estimate, choice and attention
        stores = [make_store(method, *kv, x) for kv in pairs]
        beside = stores[0].nbytes() - size
        read = beside + size * share_read(stores[0], x)
        cases[name] = [partial(store.attend, x) for store in stores], read
    return cases


def share_read(store: KvStore, q: Tensor) -> float:
    """Of the tokens, those that a step reads: where heads choose for themselves, more than each does."""
    segments = store.selection.segments(q, store.rows["keys"].view, store.rows["values"].view, None)
    read = [s.tokens if s.lists.count is None else s.lists.count.float().mean() for s in segments]
    return float(sum(read)) / store.tokens


def held(x: Tensor) -> Tensor:
    """A copy in memory as a store holds it, for torch too."""
    return Rows.copy_of(x).view


def copies(size: int) -> range:
    """As many as make the data cold."""
    return range(max(1, COLD // size))


def make_store(method: str | KvRecipe, k: Tensor, v: Tensor, q: Tensor) -> KvStore:
    """A store that reads 1/16 of the tokens, with its summaries made."""
    store = KvStore(recipe_of(method), budget=k.shape[2] // 16, layer=2)
    store.append(k, v)
    store.settle(q)
    store.attend(q)
    return store


if __name__ == "__main__":
    main()
