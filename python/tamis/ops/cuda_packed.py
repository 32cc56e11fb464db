"""Weights as CUDA kernels read them: one in one form on its device, and which forms each one has.

The arrays that a weight is saved as lie on x's device or in host memory; in the latter case the
device holds what is packed and nothing else.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda_spmm_grad
from tamis.ops.cuda_forms import BY_MASK, STORED, read_as
from tamis.ops.cuda_memory import lasting, raw_stream, refuse_in_capture, workspace
from tamis.ops.dense import unpack_dense
from tamis.ops.handle import make_matrix, pack
from tamis.ops.tensors import DTYPE_NAME, REST, Rest, as_numpy


class Packed:
    """A weight in one packed form on its device, and what it was made of."""

    __slots__ = (
        "bias",
        "cols",
        "dense",
        "device",
        "dtype",
        "form",
        "layout",
        "least",
        "made",
        "mask",
        "matrix",
        "most",
        "offsets",
        "owner",
        "pointer",
        "records",
        "rest",
        "rows",
        "scales",
        "token",
        "version",
        "workspaces",
    )

    def __init__(
        self,
        layout: Layout,
        values: Tensor,
        rest: Rest,
        dtype: torch.dtype,
        form: str,
        on: torch.device,
    ) -> None:
        how = read_as(layout, DTYPE_NAME[dtype])
        here = lie_ready((values, *rest), on)
        form = narrowed(form, values)
        # What it was made of: `fits` compares.
        self.token, self.layout, self.rest = layout.token, layout, rest
        self.owner = weakref.ref(values, _forgetter(id(values)))
        self.pointer = values.data_ptr()
        self.version = versions(values, rest)
        # What it is.
        self.form, self.dtype, self.device = form, dtype, on.index or 0
        self.rows, self.cols = layout.rows, layout.cols
        self.made: tuple[Tensor, ...] = ()  # canonical arrays that are not the weight's own
        self.records: Tensor | None = None
        self.offsets: Tensor | None = None
        self.scales: Tensor | None = None
        self.dense: Tensor | None = None  # the same weight, for more tokens
        if form != STORED:
            self._pack(how, values, on)
        elif how is layout and here and rest[0] is not None:
            if layout.dtype == "f32":  # mask_of looks at others, below
                cuda_spmm_grad.check_structure(layout, values, rest[0], rest[1])
            self.matrix = as_stored(layout, values, rest, dtype)
        else:
            self._store(how, values, on)
        # Elements of x that it takes: more than `least`, up to `most`.
        self.least, self.most = -1, self.matrix.most_tokens * layout.cols
        # Checked now, so that a prompt in a graph need not wait: gap and p24 are written out from
        # the mask, which is a part of weights as they are stored, where it is on the device.
        self.mask: cuda_spmm_grad.Mask | None = None
        if form in BY_MASK and here:
            self.mask = cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], dtype)
        # Bytes of workspace by number of tokens, and the last bias that was found to fit.
        self.workspaces: dict[int, int] = {}
        self.bias: Tensor | None = None

    def _arrays(self, how: Layout, values: Tensor) -> dict[str, Any]:
        """The weight's arrays on the host, in the layout as which kernels read it."""
        layout = self.layout
        refuse_in_capture(f"weight of {layout.label}")
        if how is not layout:
            dense = unpack_dense(values.detach(), layout, *self.rest).to(self.dtype).cpu()
            return pack(how, as_numpy(dense), how.dtype, None)
        tensors = {"values": values, **dict(zip(REST, self.rest, strict=True))}
        return {n: as_numpy(t.cpu()) for n, t in tensors.items() if t is not None}

    def _store(self, how: Layout, values: Tensor, on: torch.device) -> None:
        """Canonical arrays of its own, on the device."""
        arrays = self._arrays(how, values)
        made = lasting(on, lambda: {n: torch.from_numpy(a).to(on) for n, a in arrays.items()})
        self.made = tuple(made.values())
        rest = made.get("mask"), made.get("row_offsets"), None, None
        self.matrix = as_stored(how, made["values"], rest, self.dtype)

    def _pack(self, how: Layout, values: Tensor, on: torch.device) -> None:
        layout, scales = self.layout, self.rest[3]
        tiles = _C.pack_for_cuda(make_matrix(how, self._arrays(how, values)), self.form)

        def copied() -> tuple[Tensor, Tensor | None, Tensor | None]:
            offsets = tiles.get("offsets")
            return (
                torch.from_numpy(tiles["records"]).to(on),
                None if offsets is None else torch.from_numpy(offsets.view("int32")).to(on),
                scales.to(on) if scales is not None and how.dtype == "i8" else None,
            )

        records, self.offsets, self.scales = lasting(on, copied)
        self.records = records
        self.matrix = _C.CudaMatrix(
            records.data_ptr(),
            records.numel(),
            tiles["max_record_bytes"],
            0 if self.offsets is None else self.offsets.data_ptr(),
            layout.rows,
            layout.cols,
            DTYPE_NAME[self.dtype],
            self.device,
            self.form,
            0 if self.scales is None else self.scales.data_ptr(),
            layout.group_size if how.dtype == "i8" else 0,
        )

    def nbytes(self) -> int:
        """Bytes on the device, beside the weight's own arrays."""
        tensors = self.records, self.offsets, self.scales, self.dense, *self.made
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def serves(self, x: Tensor) -> bool:
        """Whether it is for x's dtype and device."""
        return self.dtype == x.dtype and self.device == (x.device.index or 0)

    def fits(self, token: str, values: Tensor, rest: Rest) -> bool:
        """Whether it was made of these tensors as they are now."""
        mine = self.rest
        return (
            self.pointer == values.data_ptr()
            and mine[0] is rest[0]
            and mine[1] is rest[1]
            and mine[2] is rest[2]
            and mine[3] is rest[3]
            and self.version == versions(values, rest)
            and self.token == token
            and self.owner() is values
        )

    def run(self, x: Tensor, bias: Tensor | None, y: Tensor | None = None) -> Tensor:
        """Product of x [..., cols], as many tokens as the form takes, on the current device and stream.

        ``y``: where it goes, contiguous.
        """
        cols, rows = self.cols, self.rows
        m = x.numel() // cols
        if y is None:
            y = x.new_empty(*x.shape[:-1], rows)
        if m == 0 or rows == 0:
            return y
        stride = cols
        if not x.is_contiguous():
            x = x.reshape(-1, cols)
            if x.stride(1) != 1 or x.stride(0) < cols:
                x = x.contiguous()
            stride = x.stride(0)
        nbytes = self.workspaces.get(m)
        if nbytes is None:
            nbytes = self.workspaces[m] = self.matrix.workspace(m)
        stream = raw_stream(self.device)
        memory = workspace(self.device, stream, nbytes)
        self.matrix.spmm(
            m,
            x.data_ptr(),
            stride,
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows,
            memory.pointer,
            memory.nbytes,
            stream,
        )
        return y

    def to_dense(self, values: Tensor, x: Tensor) -> Tensor:
        """The weight written out, [rows, cols], for x's device: what is kept so, or a new tensor."""
        if self.dense is not None:
            return self.dense
        if self.mask is not None:
            return cuda_spmm_grad.unpack(self.mask, values)
        dense = x.new_empty(self.rows, self.cols)
        self.matrix.unpack(dense.data_ptr(), self.cols, raw_stream(self.device))
        return dense

    def run_in_calls(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same for more tokens than a call takes, in as few equal calls as can be."""
        y = x.new_empty(*x.shape[:-1], self.rows)
        xs, ys = x.reshape(-1, self.cols), y.view(-1, self.rows)
        each = -(-len(xs) // -(-x.numel() // self.most))
        for first in range(0, len(xs), each):
            self.run(xs[first : first + each], bias, ys[first : first + each])
        return y


def as_stored(layout: Layout, values: Tensor, rest: Rest, dtype: torch.dtype) -> _C.CudaMatrix:
    """The canonical arrays themselves, which somebody has looked at (`check_structure`)."""
    mask, row_offsets = rest[0], rest[1]
    return _C.CudaMatrix(
        values.data_ptr(),
        values.numel() * values.element_size(),
        0,
        0,
        layout.rows,
        layout.cols,
        DTYPE_NAME[dtype],
        values.device.index or 0,
        STORED,
        mask_ptr=0 if mask is None else mask.data_ptr(),
        row_offsets_ptr=0 if row_offsets is None else row_offsets.data_ptr(),
        row_values=layout.cols // layout.of * layout.keep if layout.format == "nm" else 0,
    )


def lies_on(array: Tensor, device: torch.device) -> bool:
    """Whether an array of a weight lies on the device that multiplies it, not in host memory."""
    return array.device == device


def lie_ready(arrays: Iterable[Tensor | None], device: torch.device) -> bool:
    """Whether those that there are lie on the device, where kernels can read them as they are."""
    return all(t is None or (lies_on(t, device) and t.is_contiguous()) for t in arrays)


def narrowed(form: str, values: Tensor) -> str:
    """The form, of m24i8 the one of half its bytes where every code has 4 bits."""
    narrow = form == "m24i8" and not bool(((values > 7) | (values < -8)).any())
    return "m24i4" if narrow else form


# What weights are packed as, by the identity of their values: forms for few tokens first.
forms_held: dict[int, list[Packed]] = {}


def forget(values: Tensor) -> None:
    """Frees what a weight was packed as, as it leaves the device."""
    forms_held.pop(id(values), None)


def nbytes(values: Tensor, device: int) -> int:
    """Bytes on the device of what a weight was packed as; 0: not yet."""
    return sum(p.nbytes() for p in forms_held.get(id(values), ()) if p.device == device)


def keeps_dense(values: Tensor, device: torch.device) -> bool:
    """Whether what a weight was packed as lies there densely too."""
    found = (p for p in forms_held.get(id(values), ()) if p.device == (device.index or 0))
    return any(p.dense is not None for p in found)


def versions(values: Tensor, rest: Rest) -> tuple[int, ...]:
    """Counts of writes; -1 for inference tensors, which nobody counts."""
    try:
        return (values._version, *[t._version for t in rest if t is not None])
    except RuntimeError:
        given = [values, *(t for t in rest if t is not None)]
        return tuple(-1 if t.is_inference() else t._version for t in given)


def _forgetter(key: int) -> Any:
    def leave(owner: Any) -> None:
        others = [packed for packed in forms_held.get(key, ()) if packed.owner is not owner]
        if others:
            forms_held[key] = others
        else:
            forms_held.pop(key, None)

    return leave
