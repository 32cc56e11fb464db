"""What products are expected to take, by the core's cost model; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Iterable

from tamis import _C
from tamis.layout import Layout
from tamis.ops import machine

# Times closer than this are alike to the model; bytes then decide.
ALIKE = 1.05
# Bytes that a faster format may have for one of the smallest.
LARGER = 1.25


def sparse_ns(layout: Layout, nnz: int, tokens: int = 1, threads: int = 0) -> float | None:
    """Expected ns of x [tokens, cols] times a weight of this layout; None where it is unknown.

    Args:
        layout: Of the weight; x has its dtype, float32 with codes.
        nnz: Stored values.
        tokens: Rows of x.
        threads: Threads of the call; 0 is what is set now.
    """
    machine.load()
    own = "f32" if layout.quantized else layout.dtype
    threads = threads or _C.num_threads()
    found = []
    for x_dtype in {own, "f32"}:  # x widens where only float32 has a vector kernel
        ns = _C.predict(
            layout.format,
            layout.dtype,
            x_dtype,
            tokens,
            layout.rows,
            layout.cols,
            nnz,
            threads,
            layout.block if layout.format == "block" else (1, 1),
            group_size=layout.group_size,
        )
        if ns >= 0:
            found.append(ns)
    return min(found, default=None)


def dense_ns(dtype: str, rows: int, cols: int, tokens: int = 1, threads: int = 0) -> float:
    """Expected ns of the same product with a dense weight, by torch."""
    machine.load()
    return _C.predict_dense(dtype, tokens, rows, cols, threads or _C.num_threads())


def fastest(candidates: Iterable[tuple[Layout, int]], tokens: int = 1) -> tuple[Layout, int] | None:
    """The (layout, nnz) expected to be fastest; among those alike, the smallest.

    Nothing over a quarter larger than the smallest is taken, and only bytes decide where a time is
    unknown. None if there is no candidate.
    """
    held = sorted(candidates, key=lambda item: item[0].nbytes(item[1]))
    held = [
        item for item in held if item[0].nbytes(item[1]) <= LARGER * held[0][0].nbytes(held[0][1])
    ]
    times = [sparse_ns(layout, nnz, tokens) for layout, nnz in held]
    known = [ns for ns in times if ns is not None]
    if len(known) < len(held):
        return held[0] if held else None
    least = min(known, default=0.0)
    return next((item for item, ns in zip(held, known, strict=True) if ns <= ALIKE * least), None)
