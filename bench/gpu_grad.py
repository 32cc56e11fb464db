"""Gradients of a sparse layer on a CUDA device against dense products, in turns.

Three ways: kernels that unpack w or gather dw round torch's product, the product alone, as of a
masked dense layer, and torch's operators round it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_timing import timed_in_turns

SHAPES = ((4096, 4096), (14336, 4096))  # Llama-3-8B: rows, columns
TOKENS = (64, 512, 4096)
DENSITIES = (0.5, 0.1)


def gradients() -> list[dict[str, Any]]:
    import torch

    import tamis
    from tamis.ops import spmm_grad

    found = []
    for n, k in SHAPES:
        w = torch.randn(n, k, dtype=torch.bfloat16)
        for density in DENSITIES:
            a = tamis.compress(w, keep=torch.rand(n, k) < density, format="bitmap")
            dense = a.to_dense().cuda()
            names = ("values", "mask", "row_offsets", "col_indices", "scales")
            values, *rest = (None if (t := a.arrays.get(s)) is None else t.cuda() for s in names)
            token = a.layout.token
            for m in TOKENS:
                dy, x = (torch.randn(m, d, dtype=torch.bfloat16, device="cuda") for d in (n, k))
                sides = {
                    "spmm_t": partial(torch.ops.tamis.spmm_t, dy, values, *rest, token),
                    "spmm_t dense": partial(torch.matmul, dy, dense),
                    "sddmm": partial(torch.ops.tamis.sddmm, dy, x, values, *rest[:3], token),
                    "sddmm dense": partial(torch.matmul, dy.t(), x),
                }
                times = timed_in_turns(sides, 1)
                expanded = {
                    "spmm_t": partial(spmm_grad._spmm_t_any, dy, values, *rest, token),
                    "sddmm": partial(spmm_grad._sddmm_any, dy, x, values, *rest[:3], token),
                }
                want = dy.float() @ dense.float()
                error = ((sides["spmm_t"]().float() - want).norm() / want.norm()).item()
                full = dy.float().t() @ x.float()
                keep = torch.ops.tamis.unpack(torch.ones_like(values), *rest, token).bool()
                dw = sides["sddmm"]().float()
                error = max(error, ((dw - full[keep]).norm() / dw.norm()).item())
                for op, way in expanded.items():
                    found.append({
                        "op": op, "shape": [n, k], "density": density, "tokens": m,
                        "us": 1e6 * times[op], "dense_us": 1e6 * times[f"{op} dense"],
                        "expand_us": 1e6 * _eager(way), "error": error,
                    })  # fmt: skip
    return found


def _eager(call: Any, repeats: int = 7) -> float:
    """Median seconds without a graph: the gather asks the host how many values there are."""
    import statistics
    import time

    import torch

    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_gradients(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        n, k = r["shape"]
        wrong = "" if r["error"] < 1e-2 else f"  WRONG by {r['error']:.1e}"
        print(
            f"{r['op']:7} {n:5} x {k} density {r['density']} {r['tokens']:5} tokens {r['us']:8.1f} us, "
            f"dense {r['dense_us']:8.1f}, by torch {r['expand_us']:8.1f}{wrong}"
        )
