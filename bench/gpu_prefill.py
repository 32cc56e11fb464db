"""Prompts on a CUDA device: whole, half of the tokens, some blocks, against torch's SDPA in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_timing import timed_in_turns

HEADS, KV_HEADS, DIM = 32, 8, 128
TOKENS = (8192, 32768)
SHORT, ROW = 1024, 20  # up to so many tokens calls are timed in rows too, whose starts overlap
LEAD_CYCLES = 100_000  # some 60 us, in which the host launches what is timed
# Whole ones: tokens, KV heads, channels.
WHOLE = (
    *((tokens, 8, dim) for dim in (128, 64) for tokens in (128, 256, 512, 1024, 2048, 4096)),
    (8192, 8, 64),
    *((tokens, 32, dim) for dim in (128, 64) for tokens in (512, 2048, 8192)),
)


def block_lists(size: int, tokens: int, share: float) -> tuple[Any, float]:
    """Of every row of blocks its own, the first, and others before it at random."""
    import torch

    from tamis.ops.prefill import Blocks

    count = tokens // size
    row, column = torch.arange(count).view(-1, 1), torch.arange(count).view(1, -1)
    seen = torch.rand(KV_HEADS, count, count) < share
    seen = (seen | (row == column) | (column == 0)) & (column <= row)
    offsets = torch.zeros(KV_HEADS, count + 1, dtype=torch.int32)
    offsets[:, 1:] = seen.sum(-1).cumsum(-1)
    columns = torch.zeros(KV_HEADS, int(offsets.max()), dtype=torch.int32)
    for h in range(KV_HEADS):
        found = seen[h].nonzero()[:, 1].int()
        columns[h, : len(found)] = found
    share = seen.sum().item() / (KV_HEADS * count * (count + 1) / 2)
    return Blocks(size, offsets.cuda(), columns.cuda()), share


def torch_sides(q: Any, k: Any, v: Any) -> dict[str, Callable[[], object]]:
    """torch's causal attention by the backends that take it."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    def call(backend: SDPBackend) -> object:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, is_causal=True, enable_gqa=True)

    sides = {}
    for name, backend in (
        ("sdpa flash", SDPBackend.FLASH_ATTENTION),
        ("sdpa cudnn", SDPBackend.CUDNN_ATTENTION),
    ):
        try:
            call(backend)
            torch.cuda.synchronize()
            sides[name] = partial(call, backend)
        except RuntimeError as error:
            print(f"  {name}: {str(error).splitlines()[0]}")
    return sides


def our_sides(q: Any, k: Any, v: Any, whole: bool) -> dict[str, Callable[[], object]]:
    """Whole; unless only that, half of the tokens at random, and blocks."""
    import torch

    from tamis.ops.prefill import CAUSAL, Pattern, Subset, prefill_attention

    if whole:
        return {"whole": partial(prefill_attention, q, k, v, CAUSAL)}
    tokens = q.shape[2]
    half = torch.randperm(tokens)[: tokens // 2].sort()[0].int().view(1, -1).cuda()
    patterns = {
        "whole": CAUSAL,
        "half of the tokens": Pattern(rows=Subset(half), columns=Subset(half)),
    }
    for size in (64, 128):
        lists, share = block_lists(size, tokens, 0.15)
        patterns[f"{share:.0%} of blocks of {size}"] = Pattern(blocks=lists)
    return {name: partial(prefill_attention, q, k, v, p) for name, p in patterns.items()}


def prefill() -> list[dict[str, Any]]:
    cases = [(tokens, KV_HEADS, DIM, False) for tokens in TOKENS]
    cases += [(*shape, True) for shape in WHOLE]
    return [row for case in cases for row in measured(*case)]


def measured(tokens: int, kv_heads: int, dim: int, whole: bool) -> list[dict[str, Any]]:
    import torch

    torch.cuda.empty_cache()
    q = torch.randn(1, HEADS, tokens, dim, dtype=torch.bfloat16, device="cuda")
    k, v = torch.randn(2, 1, kv_heads, tokens, dim, dtype=torch.bfloat16, device="cuda")
    sides = our_sides(q, k, v, whole) | torch_sides(q, k, v)
    flops = 4 * HEADS * dim * tokens * tokens / 2
    found = []
    for count in (1, ROW) if tokens <= SHORT else (1,):
        calls = {name: partial(several, side, count) for name, side in sides.items()}
        times = timed_in_turns(calls, count, lead_cycles=LEAD_CYCLES)
        for name, t in times.items():
            row = {"tokens": tokens, "what": name, "us": 1e6 * t, "tflops": flops / t / 1e12}
            row |= {"kv_heads": kv_heads, "dim": dim, "in_a_row": count}
            for other in ("sdpa flash", "sdpa cudnn"):
                if other in times:
                    row[other] = times[other] / t
            found.append(row)
    return found


def several(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def print_prefill(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        ratios = ", ".join(f"{r[n]:.2f} of {n}" for n in ("sdpa flash", "sdpa cudnn") if n in r)
        what = r["what"] if r["in_a_row"] == 1 else f"{r['what']}, {r['in_a_row']} in a row"
        print(
            f"prefill {r['tokens']:6} g {r['kv_heads']:2} d {r['dim']:3} {what:24} "
            f"{r['us']:10.1f} us {r['tflops']:7.1f} dense TFLOP/s  {ratios}"
        )
