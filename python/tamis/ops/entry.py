"""Checked handles on torch tensors: made once, found again by every call, run by both doors."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisValueError
from tamis.layout import Layout
from tamis.ops.handle import CODE, compute_dtype, dense_limit, make_matrix
from tamis.ops.tensors import REST, TORCH_DTYPE, Rest, as_numpy, from_numpy, values_as_numpy

_NO_KERNEL = (0, -1)
_ROW_MAJOR = {"bitmap", "csr", "csr8", "nm"}
_NOTHING = torch.empty(0)


class Entry:
    """A checked matrix, what it was made of, and how each x dtype is computed."""

    __slots__ = (
        "bias",
        "bias_dtype",
        "bias_pointer",
        "col_indices",
        "cols",
        "computed",
        "direct",
        "first",
        "first_version",
        "full",
        "layout",
        "mask",
        "matrix",
        "owner",
        "pointer",
        "row_offsets",
        "rows",
        "scale_pointer",
        "scales",
        "second",
        "second_version",
        "token",
    )

    def __init__(self, token: str, values: Tensor, rest: Rest) -> None:
        layout = Layout.from_token(token)
        arrays = {n: as_numpy(t) for n, t in zip(REST, rest, strict=True) if t is not None}
        self.matrix: _C.Matrix = make_matrix(layout, {"values": values_as_numpy(values), **arrays})
        self.token, self.layout = layout.token, layout  # one string object for all who hold it
        self.rows, self.cols = layout.rows, layout.cols
        # Every element is kept, so that the values as they lie are the dense weight.
        self.full = (
            layout.format in _ROW_MAJOR
            and not layout.quantized
            and values.numel() == layout.rows * layout.cols
            and values.is_contiguous()
        )
        self.pointer = values.data_ptr()
        self.mask, self.row_offsets, self.col_indices, self.scales = rest
        self.scale_pointer = 0 if self.scales is None else self.scales.data_ptr()
        # The one or two arrays that say where the values go, and how often each was written.
        first, second = rest[1:3] if self.mask is None else rest[:2]
        self.first: Tensor = _NOTHING if first is None else first
        self.second: Tensor = _NOTHING if second is None else second
        self.first_version = _version_of(self.first)
        self.second_version = _version_of(self.second)
        # The last bias that was found to fit, so that its shape is not looked at again.
        self.bias: Tensor | None = None
        self.bias_pointer = 0
        self.bias_dtype: torch.dtype | None = None
        # Dtype that x of a dtype is computed in, None where no kernel fits; and, where that is x's
        # own, the kernel's code for it and the most tokens it should get.
        self.computed: dict[torch.dtype, torch.dtype | None] = {}
        self.direct: dict[torch.dtype, tuple[int, int]] = {}
        for name, code in CODE.items():
            found = compute_dtype(self.matrix, name)
            self.computed[TORCH_DTYPE[name]] = None if found is None else TORCH_DTYPE[found]
            if found == name:
                self.direct[TORCH_DTYPE[name]] = code, dense_limit(self.matrix, name)
        self.owner = weakref.ref(values, _forgetter(id(values)))

    def fits(self, token: str, values: Tensor, rest: Rest) -> bool:
        """Whether it was made of these tensors, and they lie where they lay and as they were."""
        return (
            self.pointer == values.data_ptr()
            and self.mask is rest[0]
            and self.row_offsets is rest[1]
            and self.col_indices is rest[2]
            and self.scales is rest[3]
            and (self.scales is None or self.scales.data_ptr() == self.scale_pointer)
            and self.first._version == self.first_version
            and self.second._version == self.second_version
            and self.token == token
        )

    def run_direct(
        self, x: Tensor, bias: Tensor | None, end: tuple[int, Tensor | None] | None = None
    ) -> Tensor | None:
        """The kernel; None where x needs converting, expanding, refusing or seeing through.

        ``end``: code of an activation, and what its result is multiplied with.
        """
        shape, dtype = x.shape, x.dtype
        # What a language model sends is unrolled: the general way costs 0.4 us more.
        if len(shape) == 3:
            batch, tokens, cols = shape
            m = batch * tokens if cols == self.cols else -1
        else:
            cols = self.cols
            m = x.numel() // cols if shape and shape[-1] == cols else -1
        code, limit = self.direct.get(dtype, _NO_KERNEL)
        if not 0 <= m <= limit:
            if m > limit >= 0 and self.full and bias is None and end is None:
                return functional.linear(x, self._dense(dtype))
            return None
        if not x.is_contiguous():
            x = x.contiguous()
        try:
            pointer = x.data_ptr()
            bias_pointer = 0 if bias is None else bias.data_ptr()
        except RuntimeError:  # the tensors of vmap and functorch have no memory of their own
            return None
        if bias is not None and not (
            self.bias is bias and self.bias_pointer == bias_pointer and self.bias_dtype is dtype
        ):
            return None
        rows = self.rows
        # Sizes one by one: a tuple of them costs 0.4 us more.
        y = x.new_empty(batch, tokens, rows) if len(shape) == 3 else x.new_empty(*shape[:-1], rows)
        if end is None:
            _C.spmm(self.matrix, pointer, code, m, cols, bias_pointer, y.data_ptr(), rows)
            return y
        return y if self._run_fused(x, m, bias_pointer, y, *end) else None

    def _run_fused(
        self, x: Tensor, m: int, bias: int, y: Tensor, activation: int, multiplier: Tensor | None
    ) -> bool:
        factors = 0
        if multiplier is not None:
            same = multiplier.shape == y.shape and multiplier.dtype is y.dtype
            if not (same and multiplier.is_cpu and type(multiplier) is Tensor):
                return False
            multiplier = multiplier.contiguous()
            try:
                factors = multiplier.data_ptr()
            except RuntimeError:  # as above
                return False
        pointer, code, out = x.data_ptr(), self.direct[x.dtype][0], y.data_ptr()
        cols, rows = self.cols, self.rows
        _C.spmm_activated(
            self.matrix, pointer, code, m, cols, bias, out, rows, activation, factors, rows
        )
        return True

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product y [..., rows] of checked CPU tensors: by kernel, in float32, or densely."""
        bias = fit_bias(bias, x, self.layout)
        if bias is not None:
            bias = bias.contiguous()
            self.bias, self.bias_pointer, self.bias_dtype = bias, bias.data_ptr(), bias.dtype
        y = self.run_direct(x, bias)
        if y is not None:
            return y
        computed = self.computed[x.dtype]
        if computed is None or computed is x.dtype:  # no kernel, or too many tokens for one
            return functional.linear(x, self._dense(x.dtype), bias)
        return self.run(x.to(computed), bias).to(x.dtype)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """Dense w [rows, cols]: the values themselves where every element is kept."""
        values = self.owner() if self.full else None
        dense = self.unpack() if values is None else values.view(self.rows, self.cols)
        # Asking for the dtype it has takes 20 us.
        return dense if dense.dtype is dtype else dense.to(dtype)

    def unpack(self) -> Tensor:
        """Dense w [rows, cols] in the values' dtype; float32 if that is int8."""
        return from_numpy(self.matrix.unpack(), self.layout.dtype)


# One entry per living ``values`` tensor, by id; it leaves with the tensor.
entries: dict[int, Entry] = {}


def entry_of(token: str, values: Tensor, rest: Rest) -> Entry:
    """Entry for these tensors: the last one, unless memory moved or the structure was written.

    Writing ``values`` or ``scales`` in place needs no new one: it borrows their memory, and any
    number is sound there. A written structure is checked again before a kernel sees it; that of
    inference tensors, whose writes nobody counts, on every call. Differs: a structure whose ``.data``
    is set to other memory goes unseen, as a look at each address would cost every call; assign a
    new tensor instead.
    """
    found = entries.get(id(values))
    if found is not None and found.fits(token, values, rest):
        return found
    entry = Entry(token, values, rest)
    if entry.first_version >= 0 and entry.second_version >= 0:
        entries[id(values)] = entry
    return entry


def fit_bias(bias: Tensor | None, x: Tensor, layout: Layout) -> Tensor | None:
    """``bias`` in x's dtype.

    Raises:
        TamisValueError: It does not have one element per row.
    """
    if bias is None:
        return None
    if bias.shape != (layout.rows,):
        raise TamisValueError(
            f"spmm: bias: got shape {list(bias.shape)}, wanted [{layout.rows}] for a weight of "
            f"shape [{layout.rows}, {layout.cols}]."
        )
    return bias.to(x.dtype)


def _version_of(tensor: Tensor) -> int:
    """Count of writes to a tensor; -1 if nobody counts."""
    return -1 if tensor.is_inference() else tensor._version


def _forgetter(key: int) -> Callable[[weakref.ref[Tensor]], None]:
    def forget(owner: weakref.ref[Tensor]) -> None:
        found = entries.get(key)
        if found is not None and found.owner is owner:
            del entries[key]

    return forget
