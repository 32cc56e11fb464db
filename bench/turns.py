"""What products cost in turns with torch's own operations, over what both cost alone.

    python bench/turns.py --threads 1 2

A model calls a product, then something of torch's, each on the threads of the other. Here a product
with the next of many weights (so it comes from memory) and a SiLU of 1 MB take turns; the quotient
is their time over that of the same calls each in a row of its own. torch's dense product stands
beside ours: it too pushes the SiLU's input out of the caches. Medians of rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import tamis
from tamis.ops.spmm import spmm

COLD_BYTES = 500 << 20


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--calls", type=int, default=40, help="of each, in a round")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    n, k = map(int, args.shape.split("x"))
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    dense = torch.randn(n, k).to(dtype)
    kept = tamis.compress(dense * (torch.rand(n, k) < 0.5))
    sparse = [
        tamis.tensor.matrix.SparseMatrix(
            kept.layout, {a: v.clone() for a, v in kept.arrays.items()}
        )
        for _ in range(COLD_BYTES // kept.nbytes + 1)
    ]
    weights = [dense.clone() for _ in range(COLD_BYTES // (n * k * dense.element_size()) + 1)]
    x = torch.randn(args.tokens, k).to(dtype)
    hidden = torch.randn(1 << 18)
    out = torch.empty_like(hidden)

    def silu() -> None:
        torch.ops.aten.silu.out(hidden, out=out)

    products: dict[str, Callable[[int], object]] = {
        "tamis": lambda i: spmm(x, sparse[i % len(sparse)]),
        "torch": lambda i: functional.linear(x, weights[i % len(weights)]),
    }
    for threads in args.threads:
        torch.set_num_threads(threads)
        found: dict[str, list[float]] = {}
        at = 0
        for _ in range(args.rounds):
            alone = _seconds(args.calls, lambda _: silu(), threads)
            found.setdefault("silu", []).append(alone)
            for name, product in products.items():
                own = _seconds(args.calls, lambda i, p=product, a=at: p(a + i), threads)
                both = _seconds(args.calls, lambda i, p=product, a=at: (p(a + i), silu()), threads)
                at += args.calls
                found.setdefault(name, []).append(own)
                found.setdefault(f"{name} in turns", []).append(both / (own + alone))
        us = {name: statistics.median(values) for name, values in found.items()}
        print(
            f"{threads} thread(s): SiLU {us['silu'] * 1e6:.1f} us; "
            + "; ".join(
                f"{name} {us[name] * 1e6:.0f} us, in turns {us[f'{name} in turns']:.3f}"
                for name in products
            ),
            flush=True,
        )


def _seconds(calls: int, work: Callable[[int], object], threads: int) -> float:
    """Of one call in a row of them; one thread by its own clock."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    work(0)
    start = clock()
    for i in range(calls):
        work(i)
    return (clock() - start) / calls


if __name__ == "__main__":
    main()
