"""Prompts on a CUDA device: whole, half of the tokens, some blocks, against torch's SDPA in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_timing import timed_in_turns

HEADS, KV_HEADS, DIM = 32, 8, 128
TOKENS = (8192, 32768)


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


def our_sides(q: Any, k: Any, v: Any) -> dict[str, Callable[[], object]]:
    """Whole, half of the tokens at random, and blocks."""
    import torch

    from tamis.ops.prefill import CAUSAL, Pattern, Subset, prefill_attention

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
    import torch

    found = []
    for tokens in TOKENS:
        torch.cuda.empty_cache()
        q = torch.randn(1, HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")
        k, v = torch.randn(2, 1, KV_HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")
        times = timed_in_turns(our_sides(q, k, v) | torch_sides(q, k, v), 1)
        flops = 4 * HEADS * DIM * tokens * tokens / 2
        for name, t in times.items():
            row = {"tokens": tokens, "what": name, "us": 1e6 * t, "tflops": flops / t / 1e12}
            for other in ("sdpa flash", "sdpa cudnn"):
                if other in times:
                    row[other] = times[other] / t
            found.append(row)
    return found


def print_prefill(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        ratios = ", ".join(f"{r[n]:.2f} of {n}" for n in ("sdpa flash", "sdpa cudnn") if n in r)
        print(
            f"prefill {r['tokens']:6} {r['what']:24} {r['us']:10.1f} us {r['tflops']:7.1f} dense "
            f"TFLOP/s  {ratios}"
        )
