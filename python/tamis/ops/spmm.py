"""spmm: y[..., n] = sum_k x[..., k] * w[n, k] + bias[n] for a compressed w, as torch operators.

``torch.ops.tamis.spmm``, ``unpack`` (compressed to dense) and ``gather`` (dense to kept values) have
fake versions and gradients, each written with the other two, so compile, export and training see
nothing but operators. ``linear`` is the door for layers: it calls the kernel directly when nobody
records the call, which saves most of the dispatcher's time.

Dtypes: x is float32, float16 or bfloat16, y has x's dtype, products accumulate in float32. A pair
of dtypes without a kernel is computed in float32; a weight without a float32 kernel either, or more
tokens than ``Matrix.dense_above`` says, is expanded and multiplied densely: never slower than that.
Other devices than the CPU always expand; they have no kernels yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops.dense import gather_dense, unpack_dense
from tamis.ops.handle import CODE, compute_dtype, dense_limit, make_matrix

TORCH_DTYPE = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
}
DTYPE_NAME = {dtype: name for name, dtype in TORCH_DTYPE.items()}
INDEX_DTYPE = {
    "mask": torch.int64,
    "row_offsets": torch.int64,
    "col_indices": torch.int32,
    "scales": torch.float32,
}

# The arrays after ``values``, in the operators' order: mask, row_offsets, col_indices, scales.
Rest = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Compressed(Protocol):
    """Whatever carries a layout and its arrays as tensors, such as a SparseMatrix."""

    layout: Layout
    arrays: Mapping[str, Any]


def spmm(x: Tensor, a: Compressed, bias: Tensor | None = None) -> Tensor:
    """Product y [..., rows] = x [..., cols] @ a.T + bias, in x's dtype.

    Differentiable in ``x``, in ``a.arrays["values"]`` unless they are int8, and in ``bias``.

    Raises:
        TamisTypeError: ``x`` is not float32, float16 or bfloat16, or lies on another device.
        TamisValueError: ``x`` or ``bias`` has the wrong shape.
    """
    get = a.arrays.get
    rest = (get("mask"), get("row_offsets"), get("col_indices"), get("scales"))
    return linear(x, a.layout.token, a.arrays["values"], rest, bias)


def linear(x: Tensor, layout: str, values: Tensor, rest: Rest, bias: Tensor | None) -> Tensor:
    """``spmm`` on bare tensors; ``layout`` is a token."""
    if torch.compiler.is_compiling() or _is_recorded(x, values, bias):
        y: Tensor = torch.ops.tamis.spmm(x, values, *rest, bias, layout)
        return y
    return _run(x, _handle(layout, values, rest), bias)


def unpack(layout: str, values: Tensor, rest: Rest) -> Tensor:
    """Dense w [rows, cols] in the dtype of ``values``; float32 where they are int8 codes."""
    dense: Tensor = torch.ops.tamis.unpack(values, *rest, layout)
    return dense


def _is_recorded(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd, a tracer, a mode, a subclass or a device must see an operator call."""
    if torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return True
    return (
        type(x) is not Tensor
        or not x.is_cpu
        or not values.is_cpu
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
    )


class _Handle(NamedTuple):
    """A checked matrix and what it was made of."""

    key: tuple[object, ...]
    matrix: _C.Matrix
    layout: Layout
    # Per x dtype: the dtype it is computed in (None: densely), its code, most tokens for a kernel.
    plans: dict[torch.dtype, tuple[torch.dtype | None, int, int]]
    owner: weakref.ref[Tensor]


# One handle per living ``values`` tensor, by id; an entry leaves with its tensor.
_handles: dict[int, _Handle] = {}


def _handle(layout: str, values: Tensor, rest: Rest) -> _Handle:
    """Handle for these tensors: the last one, unless memory moved or the structure was written.

    Writing ``values`` or ``scales`` in place needs no new handle: it borrows their memory and any
    number is sound there. A written structure is checked again before a kernel sees it; that of
    inference tensors, whose writes nobody counts, on every call.
    """
    mask, row_offsets, col_indices, scales = rest
    first, second = (row_offsets, col_indices) if mask is None else (mask, row_offsets)
    try:
        key = (
            layout,
            values.data_ptr(),
            first.data_ptr(),  # type: ignore[union-attr]
            first._version,  # type: ignore[union-attr]
            0 if second is None else second.data_ptr(),
            0 if second is None else second._version,
            0 if scales is None else scales.data_ptr(),
        )
    except RuntimeError:  # an inference tensor has no version
        return _make_handle((), layout, values, rest)
    found = _handles.get(id(values))
    if found is not None and found.key == key:
        return found
    made = _make_handle(key, layout, values, rest)
    _handles[id(values)] = made
    return made


def _make_handle(key: tuple[object, ...], token: str, values: Tensor, rest: Rest) -> _Handle:
    layout = Layout.from_token(token)
    named = dict(zip(("mask", "row_offsets", "col_indices", "scales"), rest, strict=True))
    arrays = {name: as_numpy(t) for name, t in named.items() if t is not None}
    matrix = make_matrix(layout, {"values": as_numpy(values), **arrays})
    plans = {}
    for name, code in CODE.items():
        computed = compute_dtype(matrix, name)
        plans[TORCH_DTYPE[name]] = (
            None if computed is None else TORCH_DTYPE[computed],
            code if computed is None else CODE[computed],
            0 if computed is None else dense_limit(matrix, computed),
        )
    owner = weakref.ref(values, _forgetter(id(values)))
    return _Handle(key, matrix, layout, plans, owner)


def _forgetter(key: int) -> Any:
    def forget(owner: weakref.ref[Tensor]) -> None:
        found = _handles.get(key)
        if found is not None and found.owner is owner:
            del _handles[key]

    return forget


def as_numpy(tensor: Tensor) -> Any:
    """CPU tensor as an array on the same memory; bf16 as its bits in uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _run(x: Tensor, handle: _Handle, bias: Tensor | None) -> Tensor:
    """The kernel on CPU tensors, outside autograd."""
    layout = handle.layout
    shape = x.shape
    plan = handle.plans.get(x.dtype)
    if plan is None or not shape or shape[-1] != layout.cols:
        raise _bad_x(x, layout)
    if bias is not None and (bias.shape != (layout.rows,) or bias.dtype != x.dtype):
        bias = _fit_bias(bias, x, layout)
    dtype, code, limit = plan
    m = x.numel() // layout.cols
    if m > limit:
        return functional.linear(x, _unpack_handle(handle).to(x.dtype), bias)
    if dtype is not x.dtype:
        return _run(x.to(dtype), handle, bias).to(x.dtype)
    if not x.is_contiguous():
        x = x.contiguous()
    y = x.new_empty((*shape[:-1], layout.rows))
    _C.spmm(
        handle.matrix,
        x.data_ptr(),
        code,
        m,
        layout.cols,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        layout.rows,
    )
    return y


def _fit_bias(bias: Tensor, x: Tensor, layout: Layout) -> Tensor:
    if bias.shape != (layout.rows,):
        raise TamisValueError(
            f"spmm: bias: got shape {list(bias.shape)}, wanted [{layout.rows}] for a weight of "
            f"shape [{layout.rows}, {layout.cols}]."
        )
    return bias.to(x.dtype)


def _bad_x(x: Tensor, layout: Layout) -> TamisTypeError | TamisValueError:
    if x.dtype not in DTYPE_NAME or x.dtype == torch.int8:
        return TamisTypeError(
            f"spmm: x: got dtype {x.dtype}, wanted torch.float32, float16 or bfloat16; convert it "
            "with x.to(torch.float32)."
        )
    return TamisValueError(
        f"spmm: x: got shape {list(x.shape)}, wanted [..., {layout.cols}] for a weight of shape "
        f"[{layout.rows}, {layout.cols}]."
    )


def _check_x(x: Tensor, values: Tensor, layout: Layout) -> None:
    if x.dtype not in DTYPE_NAME or x.dtype == torch.int8 or x.dim() == 0:
        raise _bad_x(x, layout)
    if x.shape[-1] != layout.cols:
        raise _bad_x(x, layout)
    if x.device != values.device:
        raise TamisTypeError(
            f"spmm: x: got device {x.device}, wanted the weight's device {values.device}; move one "
            "of them with .to()."
        )


# The operators. CPU runs the core; every other device runs plain torch.

_lib = torch.library.Library("tamis", "DEF")
_REST = "Tensor? mask, Tensor? row_offsets, Tensor? col_indices"
_TAGS = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    f"spmm(Tensor x, Tensor values, {_REST}, Tensor? scales, Tensor? bias, str layout) -> Tensor",
    tags=_TAGS,
)
_lib.define(f"unpack(Tensor values, {_REST}, Tensor? scales, str layout) -> Tensor", tags=_TAGS)
_lib.define(f"gather(Tensor dense, {_REST}, SymInt nnz, str layout) -> Tensor", tags=_TAGS)


def _spmm_cpu(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *rest, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    return _run(x, _handle(token, values, (rest[0], rest[1], rest[2], rest[3])), bias)


def _spmm_any(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *rest, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    dense = unpack_dense(values, layout, *rest)
    return functional.linear(x, dense.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _spmm_fake(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *_, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    if bias is not None:
        _fit_bias(bias, x, layout)
    return x.new_empty((*x.shape[:-1], layout.rows))


def _unpack_handle(handle: _Handle) -> Tensor:
    dense = torch.from_numpy(handle.matrix.unpack())
    return dense.view(torch.bfloat16) if handle.layout.dtype == "bf16" else dense


def _unpack_cpu(values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    return _unpack_handle(_handle(token, values, (rest[0], rest[1], rest[2], rest[3])))


def _unpack_any(values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    return unpack_dense(values, Layout.from_token(token), *rest)


def _unpack_fake(values: Tensor, *rest_layout: Any) -> Tensor:
    layout = Layout.from_token(rest_layout[-1])
    dtype = torch.float32 if layout.dtype == "i8" else values.dtype
    return values.new_empty((layout.rows, layout.cols), dtype=dtype)


def _gather_any(dense: Tensor, *structure_nnz_layout: Any) -> Tensor:
    *structure, nnz, token = structure_nnz_layout
    layout = Layout.from_token(token)
    values = gather_dense(dense.contiguous(), layout, *structure)
    if values.numel() != nnz:
        raise TamisValueError(
            f"gather: nnz: got {nnz}, wanted {values.numel()}, which the structure stores."
        )
    return values


def _gather_fake(dense: Tensor, *structure_nnz_layout: Any) -> Tensor:
    return dense.new_empty((structure_nnz_layout[-2],))


_lib.impl("spmm", _spmm_cpu, "CPU")  # type: ignore[no-untyped-call]
_lib.impl("spmm", _spmm_any, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_lib.impl("unpack", _unpack_cpu, "CPU")  # type: ignore[no-untyped-call]
_lib.impl("unpack", _unpack_any, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_lib.impl("gather", _gather_any, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("tamis::spmm", _spmm_fake, lib=_lib)
torch.library.register_fake("tamis::unpack", _unpack_fake, lib=_lib)
torch.library.register_fake("tamis::gather", _gather_fake, lib=_lib)


# Gradients: of spmm by unpack and gather, of those two by each other.


def _spmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, mask, row_offsets, col_indices, scales, bias, layout = inputs
    ctx.layout = layout
    ctx.bias_dtype = None if bias is None else bias.dtype
    kept_x = x if ctx.needs_input_grad[1] else None
    ctx.save_for_backward(kept_x, values, mask, row_offsets, col_indices, scales)
    ctx.x_dtype = x.dtype


def _spmm_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, mask, row_offsets, col_indices, scales = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    tokens = gy.reshape(-1, gy.shape[-1])
    if ctx.needs_input_grad[0]:
        dense = unpack(ctx.layout, values, (mask, row_offsets, col_indices, scales))
        grad_x = gy @ dense.to(gy.dtype)
    if ctx.needs_input_grad[1]:
        full = tokens.t() @ x.reshape(-1, x.shape[-1])
        grad_values = torch.ops.tamis.gather(
            full, mask, row_offsets, col_indices, values.shape[0], ctx.layout
        ).to(values.dtype)
    if ctx.needs_input_grad[6]:
        grad_bias = tokens.sum(0).to(ctx.bias_dtype)
    return grad_x, grad_values, None, None, None, None, grad_bias, None


def _unpack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, mask, row_offsets, col_indices, _, layout = inputs
    ctx.nnz, ctx.layout = values.shape[0], layout
    ctx.save_for_backward(mask, row_offsets, col_indices)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = torch.ops.tamis.gather(grad, *ctx.saved_tensors, ctx.nnz, ctx.layout)
    return grad_values, None, None, None, None, None


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, mask, row_offsets, col_indices, _, layout = inputs
    # The layout of the gradient, which is float even where the weight is int8.
    of_grad = replace(Layout.from_token(layout), dtype=DTYPE_NAME[dense.dtype], group_size=0)
    ctx.layout = of_grad.token
    ctx.save_for_backward(mask, row_offsets, col_indices)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask, row_offsets, col_indices = ctx.saved_tensors
    dense = unpack(ctx.layout, grad.contiguous(), (mask, row_offsets, col_indices, None))
    return dense, None, None, None, None, None


torch.library.register_autograd("tamis::spmm", _spmm_backward, setup_context=_spmm_setup, lib=_lib)
torch.library.register_autograd(
    "tamis::unpack", _unpack_backward, setup_context=_unpack_setup, lib=_lib
)
torch.library.register_autograd(
    "tamis::gather", _gather_backward, setup_context=_gather_setup, lib=_lib
)
