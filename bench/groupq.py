"""groupq products against the plain read of their bytes, and rows against groups on two threads.

    python bench/groupq.py --shapes 4096x4096 14336x4096 --threads 1 2

Weights cold (more than --cold-mb in turn), kernels and reads taking turns, medians. `of read` is the
time that a plain read of the weight's bytes takes over the product's. The last table multiplies a
weight whose upper half keeps four times the groups of its lower half: a split of rows takes as long
as its heavier half takes one thread, which is timed alone.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from tamis import _C
from tamis.layout import Layout
from tamis.ops.handle import make_matrix, pack

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "14336x4096"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--dtype", default="u4", choices=["u4", "u8"])
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--cold-mb", type=int, default=640)
    a = parser.parse_args()
    for text in a.shapes:
        n, k = map(int, text.split("x"))
        layout = Layout("groupq", n, k, a.dtype, group_size=a.group_size)
        rng = np.random.default_rng(0)
        held, nbytes = cold(layout, rng.random((n, k // a.group_size)) < a.density, a.cold_mb)
        print(f"{text} {layout.label}, {a.density:.0%} kept, {nbytes / 1e6:.2f} MB")
        for threads in a.threads:
            products(held, nbytes, threads, a)
    n, k = map(int, a.shapes[0].split("x"))
    skewed(Layout("groupq", n, k, a.dtype, group_size=a.group_size), a.cold_mb)


def cold(layout: Layout, groups: NDArray[np.bool_], mb: int) -> "tuple[list[_C.Matrix], int]":
    """Equal weights that together exceed every cache, and the bytes of one."""
    keep = groups.repeat(layout.group_size, 1)
    w = np.random.default_rng(1).standard_normal((64, layout.cols), dtype=np.float32)
    w = np.ascontiguousarray(np.tile(w, (-(-layout.rows // 64), 1))[: layout.rows])
    first = pack(layout, w, "f32", keep)
    nbytes = sum(array.nbytes for array in first.values())
    copies = [
        first,
        *({n: x.copy() for n, x in first.items()} for _ in range((mb << 20) // nbytes)),
    ]
    return [make_matrix(layout, arrays, check=False) for arrays in copies], nbytes


def products(held: "list[_C.Matrix]", nbytes: int, threads: int, a: argparse.Namespace) -> None:
    _C.set_num_threads(threads)
    times: dict[int, list[float]] = {m: [] for m in a.tokens}
    reads = []
    for _ in range(ROUNDS):
        reads.append(_C.stream_read(threads, 512 << 20))
        for m in a.tokens:
            kernel = held[0].kernel(m, "bf16")
            times[m] += _C.time_spmm(kernel, held, m, min(len(held), 40))
    read = float(np.median(reads))
    one = float(np.median(times[a.tokens[0]]))
    print(f"  {threads} thread(s), plain read {read:.1f} GB/s")
    for m in a.tokens:
        ns = float(np.median(times[m]))
        print(
            f"    m={m:<3} {ns / 1e6:7.3f} ms {nbytes / ns:6.2f} GB/s {nbytes / ns / read:5.0%} of "
            f"read  {ns / one:5.2f} x m={a.tokens[0]}  {held[0].kernel(m, 'bf16')}"
        )
    _C.set_num_threads(0)


def skewed(layout: Layout, mb: int) -> None:
    """Two threads on a weight whose upper half holds four fifths of all groups."""
    n, groups = layout.rows, layout.cols // layout.group_size
    share = np.where(np.arange(n) < n // 2, 0.8, 0.2)[:, None]
    kept = np.random.default_rng(2).random((n, groups)) < share
    whole, _ = cold(layout, kept, mb)
    upper = Layout("groupq", n // 2, layout.cols, layout.dtype, group_size=layout.group_size)
    heavy, _ = cold(upper, kept[: n // 2], mb)
    print("upper half of the rows 80 % kept, lower half 20 %, two threads, ms")
    for m in (1, 8):
        kernel = whole[0].kernel(m, "bf16")
        seen: dict[str, list[float]] = {"rows": [], "groups": []}
        for _ in range(ROUNDS):
            _C.set_num_threads(1)
            seen["rows"] += _C.time_spmm(kernel, heavy, m, min(len(heavy), 40))
            _C.set_num_threads(2)
            seen["groups"] += _C.time_spmm(kernel, whole, m, min(len(whole), 40))
        rows, split = (float(np.median(seen[name])) / 1e6 for name in ("rows", "groups"))
        print(f"  m={m}: by rows {rows:.3f}, by groups {split:.3f}, {rows / split:.2f} x")
    _C.set_num_threads(0)


if __name__ == "__main__":
    main()
