"""Gradients of a sparse layer on the processor: kernels against a dense product and what it needs.

    python bench/grad.py [--size 4096] [--threads 1] [--tokens 64 512] [--densities 0.5 0.1] [--dtypes f32]

dx = dy w by ``spmm_t`` against unpacking w and torch's product; dw = dy^T x at the stored places by
``sddmm`` against torch's product and a gather. Sides in turns, medians of the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

import tamis
from tamis.ops import spmm_grad

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def seconds(call: Callable[[], object]) -> float:
    start = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
    call()
    end = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
    return end - start


def in_turns(
    ours: Callable[[], object], dense: Callable[[], object], turns: int
) -> tuple[float, float]:
    times = [(seconds(ours), seconds(dense)) for _ in range(turns + 1)][1:]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 0.3, 0.2, 0.1, 0.05])
    parser.add_argument("--dtypes", nargs="*", default=["f32"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.size} x {args.size}, {args.threads} threads, {tamis.info()['isa']['active']}")
    print("dtype density tokens    spmm_t ms  dense ms  ratio     sddmm ms  dense ms  ratio")
    n = args.size
    for name in args.dtypes:
        dtype = DTYPES[name]
        for density in args.densities:
            w = torch.randn(n, n).to(dtype)
            a = tamis.compress(w, keep=torch.rand(n, n) < density, format="bitmap")
            values, token = a.arrays["values"], a.layout.token
            rest = tuple(a.arrays.get(k) for k in ("mask", "row_offsets", "col_indices", "scales"))
            for m in args.tokens:
                dy, x = torch.randn(m, n).to(dtype), torch.randn(m, n).to(dtype)

                turned = partial(spmm_grad.spmm_t, dy, token, values, rest)
                sampled = partial(spmm_grad.sddmm, dy, x, token, values, rest)

                def forced(call: Callable[[], torch.Tensor], ours: bool) -> Callable[[], None]:
                    def run() -> None:
                        spmm_grad._pays = lambda *_: ours
                        call()

                    return run

                found = [
                    in_turns(forced(call, True), forced(call, False), args.turns)
                    for call in (turned, sampled)
                ]
                (a1, b1), (a2, b2) = found
                print(
                    f"{name:5} {density:7} {m:6} {1e3 * a1:12.1f} {1e3 * b1:9.1f} {b1 / a1:6.2f}"
                    f" {1e3 * a2:12.1f} {1e3 * b2:9.1f} {b2 / a2:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
