"""What products are expected to take, by the core's cost model; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Iterable

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda_choice, cuda_cost, cuda_forms, machine

# Times closer than this are alike to the model; bytes then decide.
ALIKE = 1.05
# Bytes that a faster format may have for one of the smallest.
LARGER = 1.25


def sparse_ns(
    layout: Layout,
    nnz: int,
    tokens: int = 1,
    threads: int = 0,
    device: int | None = None,
    *,
    stored: bool = True,
) -> float | None:
    """Expected ns of x [tokens, cols] times a weight of this layout; None where it is unknown.

    Args:
        layout: Of the weight; x has its dtype, float32 with codes.
        nnz: Stored values.
        tokens: Rows of x.
        threads: Threads of the call; 0 is what is set now.
        device: Number of a CUDA device instead of the CPU; infinite where it has no kernel.
        stored: Whether the arrays lie on that device too, not only what is packed.
    """
    if device is not None:
        return cuda_choice.sparse_ns(layout, nnz, tokens, device, stored=stored)
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


def dense_ns(
    dtype: str, rows: int, cols: int, tokens: int = 1, threads: int = 0, device: int | None = None
) -> float | None:
    """Expected ns of the same product with a dense weight, by torch; None where it is unknown."""
    if device is not None:
        return cuda_cost.dense_ns(rows, cols, tokens, device, dtype)
    machine.load()
    return _C.predict_dense(dtype, tokens, rows, cols, threads or _C.num_threads())


def fastest(
    candidates: Iterable[tuple[Layout, int]], tokens: int = 1, device: int | None = None
) -> tuple[Layout, int] | None:
    """The (layout, nnz) expected to be fastest; among those alike, the smallest.

    Nothing over a quarter larger than the smallest is taken, and only bytes decide where a time is
    unknown. On a CUDA device only what a kernel takes is a candidate, where anything is. None if
    there is no candidate.
    """
    held = sorted(candidates, key=lambda item: item[0].nbytes(item[1]))
    if device is not None:
        held = [item for item in held if cuda_forms.packed_form(item[0])] or held
    held = [
        item for item in held if item[0].nbytes(item[1]) <= LARGER * held[0][0].nbytes(held[0][1])
    ]
    times = [sparse_ns(layout, nnz, tokens, device=device) for layout, nnz in held]
    known = [ns for ns in times if ns is not None]
    if len(known) < len(held):
        return held[0] if held else None
    least = min(known, default=0.0)
    return next((item for item, ns in zip(held, known, strict=True) if ns <= ALIKE * least), None)
