"""Products of two sparse matrices on the processor against scipy's, one thread, in turns.

    python bench/spgemm.py [--rows 100000] [--each 8]

scipy leaves the columns of a row in no order; its time with and without sorting them is given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

import tamis
from tamis import _C
from tamis.layout import Layout


def matrix(rows: int, each: int, skewed: bool, seed: int) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    i, j = rng.integers(0, rows, rows * each), rng.integers(0, rows, rows * each)
    if skewed:
        i, j = (i.astype(float) ** 2 / rows).astype(int), (j.astype(float) ** 2 / rows).astype(int)
    found = sp.coo_array(
        (rng.standard_normal(len(i)).astype(np.float32), (i, j)), (rows, rows)
    ).tocsr()
    found.sum_duplicates()
    return found


def wrapped(m: sp.csr_array) -> tamis.SparseMatrix:
    arrays = {
        "values": m.data,
        "row_offsets": m.indptr.astype(np.int64),
        "col_indices": m.indices.astype(np.int32),
    }
    return tamis.SparseMatrix(Layout("csr", *m.shape, "f32"), arrays)


def seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=8)
    args = parser.parse_args()
    _C.set_num_threads(1)
    for skewed in (False, True):
        a, b = (matrix(args.rows, args.each, skewed, seed) for seed in (1, 2))
        ours = [wrapped(m) for m in (a, b)]

        def sorted_product(a: sp.csr_array = a, b: sp.csr_array = b) -> object:
            c = a @ b
            c.sort_indices()
            return c

        sides = [
            lambda ours=ours: ours[0] @ ours[1],
            lambda a=a, b=b: a @ b,
            sorted_product,
        ]
        times = [[seconds(s) for s in sides] for _ in range(6)][1:]
        mine, plain, in_order = (statistics.median(t) for t in zip(*times, strict=True))
        print(
            f"{args.rows} rows, {args.each} values each, {'skewed' if skewed else 'uniform'}: "
            f"{(ours[0] @ ours[1]).nnz} values; ours {1e3 * mine:.0f} ms, scipy {1e3 * plain:.0f}, "
            f"sorted {1e3 * in_order:.0f}; {plain / mine:.2f} and {in_order / mine:.2f} times"
        )


if __name__ == "__main__":
    main()
