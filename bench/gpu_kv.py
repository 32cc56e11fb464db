"""Decode attention of one token on a CUDA device against torch's SDPA, in turns, on cold caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_timing import copies_of, timed, timed_in_turns

HEADS, KV_HEADS, DIM = 32, 8, 128
TOKENS = (4096, 32768)
SHARE = 16  # quest and double_sparsity read one token of so many


def calls(each: list[Callable[[], object]], count: int) -> Callable[[], None]:
    def run() -> None:
        for i in range(count):
            each[i % len(each)]()

    return run


def sdpa_sides(q: Any, k: list[Any], v: list[Any], count: int) -> dict[str, Callable[[], None]]:
    """torch's ways to the same answer: query heads as rows of their KV head, and enable_gqa."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    b = q.shape[0]
    rows = q.view(b, KV_HEADS, HEADS // KV_HEADS, DIM)

    def flash(call: Callable[[], object]) -> object:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return call()

    forms = {
        "rows": [partial(sdpa, rows, *kv) for kv in zip(k, v, strict=True)],
        "gqa": [partial(sdpa, q, *kv, enable_gqa=True) for kv in zip(k, v, strict=True)],
    }
    sides = {}
    for name, form in forms.items():
        sides[f"sdpa {name} flash"] = calls([partial(flash, call) for call in form], count)
        sides[f"sdpa {name}"] = calls(form, count)
    works = {}
    for name, side in sides.items():
        try:
            side()
            torch.cuda.synchronize()
            works[name] = side
        except RuntimeError as error:
            print(f"  {name}: {str(error).splitlines()[0]}")
    return works


def store(method: str, k: Any, v: Any, budget: int | None) -> Any:
    """A store of a late layer: methods exempt first ones from selection."""
    from tamis.kv.kv_store import KvStore
    from tamis.kv.methods import recipe_of

    made = KvStore(recipe_of(method), budget=budget, layer=99)
    made.append(k, v)
    made.settle()
    return made


def our_sides(q: Any, k: list[Any], v: list[Any]) -> dict[str, tuple[list[Any], int]]:
    """Stores, in as many copies as the cache needs to be cold, and the bytes that a step reads."""
    import torch

    tokens = k[0].shape[2]
    sides: dict[str, tuple[list[Any], int]] = {}
    for method in ("full", "kivi8", "kivi4", "kivi2", "quest", "double_sparsity"):
        budget = tokens // SHARE if method in ("quest", "double_sparsity") else None
        first = store(method, k[0], v[0], budget)
        first.attend(q)
        nbytes = first.nbytes()
        if budget:
            parts = first.bytes_by_part()
            dense = parts["keys"] + parts["values"]
            nbytes = nbytes - dense + dense // SHARE
        more = min(copies_of(nbytes), 12) - 1
        stores = [first]
        for i in range(more):
            stores.append(store(method, k[(i + 1) % len(k)], v[(i + 1) % len(v)], budget))
        for each in stores:
            each.attend(q)
        torch.cuda.synchronize()
        sides[method] = ([partial(each.attend, q) for each in stores], nbytes)
    return sides


def kv(batch: int, rate: float) -> list[dict[str, Any]]:
    import torch

    found = []
    for tokens in TOKENS:
        torch.cuda.empty_cache()
        shape = (batch, KV_HEADS, tokens, DIM)
        k = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        v = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        q = torch.randn(batch, HEADS, 1, DIM, dtype=torch.bfloat16, device="cuda")
        ours = our_sides(q, k, v)
        count = 12
        sides = {name: calls(each, count) for name, (each, _) in ours.items()}
        times = timed_in_turns(sides | sdpa_sides(q, k, v, count), count)
        torches = {name: t for name, t in times.items() if name.startswith("sdpa")}
        best = min(torches.values())
        for name, t in torches.items():
            found.append({"batch": batch, "tokens": tokens, "what": name, "us": 1e6 * t})
        for name, (_, nbytes) in ours.items():
            found.append({
                "batch": batch, "tokens": tokens, "what": name, "us": 1e6 * times[name],
                "speedup": best / times[name], "of_copy_rate": nbytes / times[name] / 1e9 / rate,
            })  # fmt: skip
        found += parts_of(batch, tokens, k, v, q)
        del ours, k, v
    return found


def parts_of(batch: int, tokens: int, k: list[Any], v: list[Any], q: Any) -> list[dict[str, Any]]:
    """Times of what Double Sparsity's step consists of, and of pages without a dense tail."""
    import torch

    from tamis.ops import kv_select as op
    from tamis.ops.attention import DenseSegment, Lists, PageSegment, sparse_attention
    from tamis.ops.kv_quantize import kv_quantize, page_layout

    channels = (
        torch.arange(DIM // 4, dtype=torch.int32, device="cuda").repeat(KV_HEADS, 1).contiguous()
    )
    size = op.label_bytes(DIM // 4)
    records = [
        torch.empty(batch, KV_HEADS, tokens // 16, size, dtype=torch.uint8, device="cuda")
        for _ in range(12)
    ]
    for i, r in enumerate(records):
        op.append_labels(r, k[i % len(k)], channels, 0)
    labels = [op.Labels(r, channels, tokens) for r in records]
    scores = op.kv_estimate(q, labels[0])
    op.kv_select(scores, tokens // SHARE)
    torch.cuda.synchronize()
    index, count = op.kv_select(scores, tokens // SHARE)
    listed = [
        DenseSegment(a, b, Lists(index=index, count=count)) for a, b in zip(k, v, strict=True)
    ]
    sides = {
        "attend to listed": calls([partial(sparse_attention, q, [s]) for s in listed], 12),
        "estimate": calls([partial(op.kv_estimate, q, x) for x in labels], 12),
        "select": calls([partial(op.kv_select, scores, tokens // SHARE)], 12),
        "choose": calls([partial(op.kv_choose, q, x, tokens // SHARE) for x in labels], 12),
    }
    for bits in (8, 4, 2):
        layout = page_layout(DIM, bits, bits)
        shape = (batch, KV_HEADS, tokens // 32, layout.nbytes)
        held = []
        for i in range(min(copies_of(batch * KV_HEADS * tokens // 32 * layout.nbytes), 12)):
            held.append(torch.empty(shape, dtype=torch.uint8, device="cuda"))
            kv_quantize(k[i % len(k)], v[i % len(v)], layout, held[-1])
        segments = [[PageSegment(x, layout)] for x in held]
        sides[f"pages of {bits} bits"] = calls(
            [partial(sparse_attention, q, s) for s in segments], 12
        )
    for side in sides.values():
        side()
    torch.cuda.synchronize()
    return [
        {"batch": batch, "tokens": tokens, "what": name, "us": 1e6 * timed(side, 12)}
        for name, side in sides.items()
    ]


def print_kv(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        ratio = f"{r['speedup']:6.2f} {r['of_copy_rate']:5.0%} of copy" if "speedup" in r else ""
        print(f"kv b {r['batch']} {r['tokens']:6} tokens {r['what']:18} {r['us']:8.1f} us {ratio}")
