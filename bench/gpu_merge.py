"""kv_edit, pages of 64 tokens and low-rank keys on a CUDA device, against torch, in turns."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_kv import calls
from gpu_timing import copies_of, timed_in_turns

# Batch, KV heads, tokens, kept ones, d.
MERGES = (
    (1, 3, 1024, 256, 64),
    (1, 8, 4096, 1024, 128),
    (1, 8, 16384, 4096, 128),
    (1, 8, 32768, 8192, 128),
    (4, 8, 8192, 2048, 128),
)
TAU = 0.01  # of random tokens: nearly all join


def torch_merge(k: Any, v: Any, kept: Any, dropped: Any, weight: Any) -> tuple[Any, Any]:
    """Means of values, and who joined whom, by products of bf16 rows of length 1 (sums in any order)."""
    import torch
    from torch.nn.functional import normalize

    def wide(index: Any) -> Any:
        return index.long().unsqueeze(-1).expand(-1, -1, -1, k.shape[3])

    own_k, own_v = (x.gather(2, wide(kept)) for x in (k, v))
    other_k, other_v = (x.gather(2, wide(dropped)) for x in (k, v))
    to = k.dtype
    unit = [normalize(x.float(), dim=-1).to(to) for x in (own_k, own_v, other_k, other_v)]
    by_key, by_value = (unit[i + 2] @ unit[i].transpose(-1, -2) for i in range(2))
    alike = torch.where((by_key > 0) & (by_value > 0), by_key * by_value, 0)
    best, place = alike.max(-1)
    brought = torch.where(best > TAU, weight.gather(2, dropped.long()), 0.0)
    own = weight.gather(2, kept.long())
    total = own.scatter_add(2, place, brought)
    sums = own.unsqueeze(-1) * own_v.float()
    sums.scatter_add_(2, wide(place), brought.unsqueeze(-1) * other_v.float())
    return (sums / total.unsqueeze(-1)).to(to), torch.where(best > TAU, place, -1)


def lists(b: int, g: int, tokens: int, keep: int) -> tuple[Any, Any]:
    """Two ascending lists of all tokens, [b, g, keep] and the others."""
    import torch

    order = torch.rand(b, g, tokens, device="cuda").argsort(-1)
    first, rest = (x.sort(-1).values.int().contiguous() for x in order.split(
        [keep, tokens - keep], -1))  # fmt: skip
    return first, rest


def merges() -> list[dict[str, Any]]:
    """Times of merge_tokens and gather_rows, and of torch's ways to the same."""
    import torch

    from tamis.ops.kv_edit import Similar, Tokens, gather_rows, merge_tokens

    found = []
    for b, g, tokens, keep, d in MERGES:
        kept, dropped = lists(b, g, tokens, keep)
        weight = torch.rand(b, g, tokens, device="cuda")
        count = min(3, copies_of(4 * b * g * tokens * d))
        pairs = [torch.randn(2, b, g, tokens, d, device="cuda").bfloat16() for _ in range(count)]
        ours = (Tokens(kept), Tokens(dropped), Similar(TAU))
        wide = kept.long().unsqueeze(-1).expand(-1, -1, -1, d)
        sides = {
            "merge_tokens": [partial(merge_tokens, *p, *ours, weight=weight) for p in pairs],
            "torch": [partial(torch_merge, *p, kept, dropped, weight) for p in pairs],
            "gather_rows": [partial(gather_rows, p[0], Tokens(kept)) for p in pairs],
            "torch.gather": [partial(torch.gather, p[0], 2, wide) for p in pairs],
        }
        times = timed_in_turns({n: calls(each, count) for n, each in sides.items()}, count)
        joined = merge_tokens(*pairs[0], *ours, weight=weight).joined
        same = joined == torch_merge(*(x.float() for x in pairs[0]), kept, dropped, weight)[1]
        flop = 4 * b * g * keep * (tokens - keep) * d
        found.append({"batch": b, "kv_heads": g, "tokens": tokens, "kept": keep, "d": d,
                      "same_as_f32": float(same.float().mean()),
                      "tflops": flop / times["merge_tokens"] / 1e12,
                      "us": {n: 1e6 * t for n, t in times.items()}})  # fmt: skip
        print_merges(found[-1:])
        del pairs, sides, same
        torch.cuda.empty_cache()
    return found + long_pages() + low_ranks()


def long_pages() -> list[dict[str, Any]]:
    """Decode attention of one token (h 32, g 8, d 128) over pages of 32 tokens and of 64."""
    import torch

    from tamis.ops.attention import PageSegment, sparse_attention
    from tamis.ops.kv_quantize import kv_quantize, page_layout

    found = []
    q = torch.randn(1, 32, 1, 128, device="cuda").bfloat16()
    for tokens in (4096, 32768):
        k, v = torch.randn(2, 1, 8, tokens, 128, device="cuda").bfloat16()
        sides = {}
        for bits in (2, 4, 8):
            for page in (32, 64):
                layout = page_layout(128, bits, bits, page, 32 if page == 32 else 128)
                made = torch.empty(
                    1, 8, tokens // page, layout.nbytes, dtype=torch.uint8, device="cuda"
                )
                kv_quantize(k, v, layout, made)
                each = [made.clone() for _ in range(min(16, copies_of(made.numel())))]
                parts = [partial(sparse_attention, q, [PageSegment(x, layout)]) for x in each]
                sides[f"{bits} bits x{page}"] = calls(parts, 16)
        times = timed_in_turns(sides, 16)
        found.append({"tokens": tokens, "us": {n: 1e6 * t for n, t in times.items()}})
        print_merges(found[-1:])
    return found


def torch_low_rank(q: Any, s: Any) -> Any:
    """What attention to the listed tokens of a low-rank segment is, by torch's products and SDPA."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    index = s.lists.index.long()
    keys = (s.coordinates[0][index[0]] @ s.basis[0]).unsqueeze(0).float()
    fine, coarse = s.turns[index % 64], s.turns[64 + index // 64]
    cos = fine[..., 0, :] * coarse[..., 0, :] - fine[..., 1, :] * coarse[..., 1, :]
    sin = fine[..., 1, :] * coarse[..., 0, :] + fine[..., 0, :] * coarse[..., 1, :]
    first, second = keys.chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(q.dtype)
    values = s.values.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, q.shape[3]))
    return sdpa(q, turned, values, enable_gqa=True)


def low_ranks() -> list[dict[str, Any]]:
    """Decode attention of one token (h 32, g 8, d 128) to listed tokens of rank 176."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from tamis.ops.attention import (
        DenseSegment,
        Lists,
        LowRankSegment,
        key_turns,
        sparse_attention,
    )

    found = []
    q = torch.randn(1, 32, 1, 128, device="cuda").bfloat16()
    for tokens, listed in ((32768, 2048), (131072, 2048), (131072, 8192)):
        coordinates = torch.randn(1, tokens, 176, device="cuda").bfloat16()
        basis = (torch.randn(1, 8, 176, 128, device="cuda") / 13).bfloat16()
        k, v = torch.randn(2, 1, 8, tokens, 128, device="cuda").bfloat16()
        order = Lists(index=lists(1, 8, tokens, listed)[0])
        low = LowRankSegment(
            coordinates, basis, v, key_turns(torch.rand(64), tokens, q.device), order
        )
        sides = {
            "low rank": calls([partial(sparse_attention, q, [low])], 4),
            "torch": calls([partial(torch_low_rank, q, low)], 4),
            "listed rows": calls([partial(sparse_attention, q, [DenseSegment(k, v, order)])], 4),
            "SDPA of all": calls([partial(sdpa, q, k, v, enable_gqa=True)], 4),
        }
        times = timed_in_turns(sides, 4)
        found.append(
            {"tokens": tokens, "listed": listed, "us": {n: 1e6 * t for n, t in times.items()}}
        )
        print_merges(found[-1:])
    return found


def print_merges(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        us = ", ".join(f"{name} {t:.1f}" for name, t in r["us"].items())
        if "kept" in r:
            print(
                f"merge b {r['batch']} g {r['kv_heads']} {r['kept']} of {r['tokens']} d {r['d']}: {us} us; "
                f"{r['tflops']:.0f} TFLOP/s, {r['same_as_f32']:.2%} joined as in f32",
                flush=True,
            )
        elif "listed" in r:
            print(f"{r['listed']} of {r['tokens']} tokens of rank 176: {us} us", flush=True)
        else:
            print(f"pages of {r['tokens']} tokens: {us} us", flush=True)
