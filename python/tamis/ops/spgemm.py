"""spgemm: c = a @ b of two csr matrices, as csr, as a torch operator without a gradient.

A place is stored if some product falls on it, also where the sum is zero. Sums are float32, in the
order of a's columns, so the bits do not depend on threads or on chance; the columns of a row are in
order. On CUDA the number of values comes to the host once, to make room.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops import cuda
from tamis.ops.cuda_memory import with_workspace
from tamis.ops.entry import entry_of
from tamis.ops.handle import core_errors

__all__ = ["Csr", "spgemm"]

Csr = tuple[Tensor, Tensor, Tensor]
"""values [nnz] float32, row_offsets [rows + 1] int64, col_indices [nnz] int32, ascending in a row."""


def spgemm(a: Csr, b: Csr, shape: tuple[int, int, int]) -> Csr:
    """Product of a [m, p] and b [p, n]; ``shape`` is (m, p, n).

    Raises:
        TamisTypeError: Values are not float32, or arrays lie on several devices.
        TamisValueError: Arrays contradict each other or the shape.
    """
    values, row_offsets, col_indices = torch.ops.tamis.spgemm(*a, *b, *shape)
    return values, row_offsets, col_indices


_lib: Any = torch.library.Library("tamis", "FRAGMENT")  # type: ignore[no-untyped-call]
_lib.define(
    "spgemm(Tensor a_values, Tensor a_row_offsets, Tensor a_col_indices, Tensor b_values, "
    "Tensor b_row_offsets, Tensor b_col_indices, SymInt m, SymInt p, SymInt n) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _check(name: str, a: Csr, rows: int, device: torch.device) -> None:
    values, row_offsets, col_indices = a
    wanted = torch.float32, torch.int64, torch.int32
    for t, dtype in zip(a, wanted, strict=True):
        if t.dtype != dtype or t.device != device:
            raise TamisTypeError(
                f"spgemm: {name}: got {t.dtype} on {t.device}, wanted {dtype} on {device} (values "
                "float32, row_offsets int64, col_indices int32); convert it."
            )
    if row_offsets.shape != (rows + 1,) or values.shape != col_indices.shape or values.dim() != 1:
        raise TamisValueError(
            f"spgemm: {name}: got shapes {list(values.shape)}, {list(row_offsets.shape)} and "
            f"{list(col_indices.shape)}, wanted [nnz], [{rows + 1}] and [nnz]."
        )


def _cpu(*arguments: Any) -> Csr:
    a, b, (m, p, n) = arguments[:3], arguments[3:6], arguments[6:]
    handles = []
    for name, arrays, rows, cols in (("a", a, m, p), ("b", b, p, n)):
        _check(name, arrays, rows, a[0].device)
        values, *rest = (t.contiguous() for t in arrays)
        token = Layout(format="csr", rows=rows, cols=cols, dtype="f32").token
        handles.append(entry_of(token, values, (None, *rest, None)).matrix)
    with core_errors():
        c = _C.spgemm(*handles)
    names = ("values", "row_offsets", "col_indices")
    values, row_offsets, col_indices = (torch.from_numpy(c[s]) for s in names)
    return values, row_offsets, col_indices


def _sound(a: Csr, cols: int) -> Tensor:
    """Whether a kernel may follow these arrays: a boolean on their device."""
    values, row_offsets, col_indices = a
    fine = (row_offsets[0] == 0) & (row_offsets[-1] == values.numel())
    fine = fine & (row_offsets.diff() >= 0).all()
    fine = fine & ((col_indices >= 0) & (col_indices < cols)).all()
    # Columns ascend but where a row begins.
    begins = torch.zeros(values.numel() + 1, dtype=torch.bool, device=values.device)
    begins[row_offsets.clamp(0, values.numel())] = True
    return fine & ((col_indices.diff() > 0) | begins[1:-1]).all()


_seen: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], tuple[int, ...]]] = {}


def _check_contents(name: str, a: Csr, cols: int) -> None:
    """Refuses offsets and columns that contradict each other; asks the device once per pair."""
    values, row_offsets, col_indices = a
    countable = not (row_offsets.is_inference() or col_indices.is_inference())
    facts: tuple[int, ...] = ()
    if countable:
        facts = values.numel(), cols, row_offsets._version, col_indices._version
        found = _seen.get(id(row_offsets))
        if (
            found is not None
            and found[0]() is row_offsets
            and found[1]() is col_indices
            and found[2] == facts
        ):
            return
    if not bool(_sound(a, cols)):
        raise TamisValueError(
            f"spgemm: {name}: got row_offsets or col_indices that contradict each other, wanted csr "
            "with ascending columns in range; see tamis.SparseMatrix."
        )
    if countable:
        key = id(row_offsets)
        first = weakref.ref(row_offsets, lambda _: _seen.pop(key, None))
        _seen[key] = first, weakref.ref(col_indices), facts


def _pointers(a: Csr, rows: int, cols: int) -> tuple[tuple[int, int, int], int, int, int]:
    values, row_offsets, col_indices = a
    shape = rows, cols, values.numel()
    return shape, values.data_ptr(), row_offsets.data_ptr(), col_indices.data_ptr()


def _cuda(*arguments: Any) -> Csr:
    a, b, (m, p, n) = arguments[:3], arguments[3:6], arguments[6:]
    device = a[0].device
    for name, arrays, rows in (("a", a, m), ("b", b, p)):
        _check(name, arrays, rows, device)
    if cuda.why_off():
        on_cpu = _cpu(*(t.cpu() for t in (*a, *b)), m, p, n)
        return on_cpu[0].to(device), on_cpu[1].to(device), on_cpu[2].to(device)
    a = a[0].contiguous(), a[1].contiguous(), a[2].contiguous()
    b = b[0].contiguous(), b[1].contiguous(), b[2].contiguous()
    _check_contents("a", a, p)
    _check_contents("b", b, n)
    left, right = _pointers(a, m, p), _pointers(b, p, n)
    index, row_offsets = device.index or 0, torch.zeros(m + 1, dtype=torch.int64, device=device)

    def count(stream: int, pointer: int, nbytes: int) -> int:
        counts = row_offsets[1:].data_ptr()
        return _C.cuda_spgemm_count(index, stream, left, right, counts, pointer, nbytes)

    with_workspace(index, count)
    row_offsets = row_offsets.cumsum(0)
    nnz = int(row_offsets[-1])
    values = torch.empty(nnz, dtype=torch.float32, device=device)
    col_indices = torch.empty(nnz, dtype=torch.int32, device=device)

    def fill(stream: int, pointer: int, nbytes: int) -> int:
        out = row_offsets.data_ptr(), col_indices.data_ptr(), values.data_ptr()
        return _C.cuda_spgemm_fill(index, stream, left, right, *out, pointer, nbytes)

    if nnz:
        with_workspace(index, fill)
    return values, row_offsets, col_indices


def _fake(*arguments: Any) -> Csr:
    a, m = arguments[:3], arguments[6]
    nnz = torch.library.get_ctx().new_dynamic_size()
    return a[0].new_empty(nnz), a[1].new_empty(m + 1), a[2].new_empty(nnz)


_lib.impl("spgemm", _cpu, "CPU")
_lib.impl("spgemm", _cuda, "CUDA")
torch.library.register_fake("tamis::spgemm", _fake, lib=_lib)
