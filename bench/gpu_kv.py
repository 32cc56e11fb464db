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
    for method in ("full", "kivi8", "kivi4", "kivi4_wide", "kivi2", "quest", "double_sparsity"):
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
        if method == "quest":  # random heads agree on nothing
            group = q.unflatten(1, (KV_HEADS, -1))
            same = group[:, :, :1].expand_as(group).reshape(q.shape)
            sides["quest, heads agree"] = ([partial(s.attend, same) for s in stores], nbytes)
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
    """Times of what Double Sparsity's and Quest's steps consist of, and of pages without a dense tail."""
    import torch

    from tamis.ops import kv_select as op
    from tamis.ops.attention import DenseSegment, Lists, PageSegment, sparse_attention
    from tamis.ops.kv_quantize import kv_quantize, page_layout
    from tamis.ops.kv_summary import page_bounds

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
    pages = [op.PageBounds(page_bounds(x, 16), 16) for x in k]
    sides = {
        "attend to listed": calls([partial(sparse_attention, q, [s]) for s in listed], 12),
        "estimate": calls([partial(op.kv_estimate, q, x) for x in labels], 12),
        "select": calls([partial(op.kv_select, scores, tokens // SHARE)], 12),
        "choose": calls([partial(op.kv_choose, q, x, tokens // SHARE) for x in labels], 12),
        "choose pages": calls(
            [partial(op.kv_choose, q, x, tokens // SHARE // 16, by_row=True) for x in pages], 12
        ),
    }
    for name, bits, page in (("8", 8, 32), ("4", 4, 32), ("4, wide", 4, 64), ("2", 2, 32)):
        layout = page_layout(DIM, bits, bits, page, DIM if page == 64 else None)
        shape = (batch, KV_HEADS, tokens // page, layout.nbytes)
        held = []
        for i in range(min(copies_of(batch * KV_HEADS * tokens // page * layout.nbytes), 12)):
            held.append(torch.empty(shape, dtype=torch.uint8, device="cuda"))
            kv_quantize(k[i % len(k)], v[i % len(v)], layout, held[-1])
        segments = [[PageSegment(x, layout)] for x in held]
        sides[f"pages of {name} bits"] = calls(
            [partial(sparse_attention, q, s) for s in segments], 12
        )
    for side in sides.values():
        side()
    torch.cuda.synchronize()
    return [
        {"batch": batch, "tokens": tokens, "what": name, "us": 1e6 * timed(side, 12)}
        for name, side in sides.items()
    ]


MASS = ((1, 32768), (32, 32768), (128, 32768), (8192, 8192), (32768, 32768))


def torch_mass(q: Any, keys: Any) -> Any:
    """What kv_mass sums, by torch's products and softmax, some queries at a time."""
    import torch

    h, n, d = q.shape[1:]
    g, s = keys.shape[1:3]
    out = torch.zeros(g, s, device=q.device)
    step = max(1, (1 << 28) // (h * s))
    places = torch.arange(s, device=q.device)
    for at in range(0, n, step):
        rows = q[0, :, at : at + step].reshape(g, -1, d)
        seen = s - n + at + torch.arange(min(step, n - at), device=q.device)
        hidden = places > seen.repeat(h // g).unsqueeze(1)
        scores = (rows @ keys[0].transpose(1, 2)).float().mul_(d**-0.5)
        out += scores.masked_fill_(hidden, float("-inf")).softmax(-1).sum(1)
    return out / (h // g)


def shares() -> list[dict[str, Any]]:
    """Times of kv_mass and of kv_select by top_p, and of torch's ways to the same."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from tamis.ops.kv_select import kv_mass, kv_select

    found = []
    for heads in (8, 64):
        scores = (3 * torch.randn(1, heads, 32768, device="cuda")).softmax(-1)

        def by_sorting(scores: Any = scores) -> Any:
            order = scores.sort(-1, descending=True)
            return (order[0].cumsum(-1) < 0.975).sum(-1), order[1]

        sides = {
            "kv_select, top_p": calls([partial(kv_select, scores, top_p=0.975)], 12),
            "kv_select, k": calls([partial(kv_select, scores, 2048)], 12),
            "torch, sort and cumsum": calls([by_sorting], 12),
        }
        times = timed_in_turns(sides, 12)
        found += [{"what": name, "heads": heads, "us": 1e6 * t} for name, t in times.items()]
    for n, s in MASS:
        q = torch.randn(1, HEADS, n, DIM, dtype=torch.bfloat16, device="cuda")
        each = 2 * KV_HEADS * s * DIM
        keys = [
            torch.randn(1, KV_HEADS, s, DIM, dtype=torch.bfloat16, device="cuda")
            for _ in range(min(copies_of(each), 8))
        ]
        count = len(keys) if n < 4096 else 1
        sides = {
            "kv_mass": calls([partial(kv_mass, q, k) for k in keys], count),
            "torch": calls([partial(torch_mass, q, k) for k in keys], count),
        }
        if n == s:
            sides["sdpa, causal"] = calls(
                [partial(sdpa, q, k, k, is_causal=True, enable_gqa=True) for k in keys], count
            )
        times = timed_in_turns(sides, count)
        work = 4 * HEADS * n * (s - n / 2) * DIM  # both passes
        found += [{"what": f"mass {name}", "queries": n, "tokens": s, "us": 1e6 * t,
                   "tflops": work / t / 1e12} for name, t in times.items()]  # fmt: skip
        print_shares(found[-len(times) :])
    return found


def print_shares(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        if "queries" in r:
            print(
                f"kv {r['what']:18} n {r['queries']:6} s {r['tokens']:6} {r['us']:10.1f} us "
                f"{r['tflops']:6.1f} TFLOP/s"
            )
        else:
            print(f"kv {r['what']:24} {r['heads']} heads of 32768 {r['us']:8.1f} us")


def print_kv(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        ratio = f"{r['speedup']:6.2f} {r['of_copy_rate']:5.0%} of copy" if "speedup" in r else ""
        print(f"kv b {r['batch']} {r['tokens']:6} tokens {r['what']:18} {r['us']:8.1f} us {ratio}")
