"""spmm: y[..., n] = sum_k x[..., k] * w[n, k] + bias[n] for a compressed w, as torch operators.

``torch.ops.tamis.spmm``, ``unpack`` (compressed to dense) and ``gather`` (dense to kept values) have
fake versions and gradients, which are operators again (``tamis.ops.spmm_grad``), so compile, export
and training see nothing else. ``linear`` is the door for layers: it calls the kernel directly when nobody
records the call, which saves most of the dispatcher's time.

Dtypes: x is float32, float16 or bfloat16 (under autocast what that says, as for torch's own
products), y has x's dtype, products accumulate in float32. Where
only float32 has a vector kernel for the weight, x is converted to it and y back. A weight without a
kernel, or more tokens than ``Matrix.dense_above`` says, is expanded and multiplied densely.
CUDA has kernels of its own (``tamis.ops.cuda_spmm``); other devices, and pairs without a kernel,
expand. So does what torch.func transforms, and forward-mode differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import Layout
from tamis.ops import cuda_spmm, cuda_spmm_grad, spmm_grad
from tamis.ops.dense import gather_dense, unpack_dense, unpack_traced
from tamis.ops.entry import entries, entry_of, fit_bias
from tamis.ops.tensors import DTYPE_NAME, TORCH_DTYPE, Rest, autocast, transformed

__all__ = ["ACTIVATIONS", "TORCH_DTYPE", "Compressed", "linear", "spmm", "unpack"]

# What may follow a product, in the order of the core's codes, which start at 1.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}
_CODES = {None: 0} | {name: code for code, name in enumerate(ACTIVATIONS, start=1)}

# Export traces with a mode on the stack, so Dynamo alone is asked after.
_is_autocast = torch.is_autocast_enabled
_is_dynamo = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_count_modes = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing


class Compressed(Protocol):
    """Whatever carries a layout and its arrays as tensors, such as a SparseMatrix."""

    layout: Layout
    arrays: Mapping[str, Any]


def spmm(
    x: Tensor,
    a: Compressed,
    bias: Tensor | None = None,
    activation: str | None = None,
    multiplier: Tensor | None = None,
) -> Tensor:
    """Product y [..., rows] = activation(x [..., cols] @ a.T + bias) * multiplier, in x's dtype.

    Differentiable in ``x``, in ``a.arrays["values"]`` unless they are int8, in ``bias`` and in
    ``multiplier``. On the CPU, where nobody records the call, activation and multiplication run in
    float32 on each core's part of y while that is in its cache; else they are torch's own.

    Args:
        x: [..., cols].
        a: The weight.
        bias: [rows].
        activation: "relu", "gelu", "gelu_tanh", "silu" or None.
        multiplier: [..., rows] like y: with "silu" the other half of a gated unit (SwiGLU).

    Raises:
        TamisTypeError: ``x`` is not float32, float16 or bfloat16, or lies on another device (but for
            CUDA's packed copies of 16-bit products, whose saved arrays may stay in host memory), or
            ``multiplier`` has another dtype.
        TamisValueError: ``x``, ``bias`` or ``multiplier`` has the wrong shape; no such activation.
    """
    get = a.arrays.get
    rest = (get("mask"), get("row_offsets"), get("col_indices"), get("scales"))
    return linear(x, a.layout.token, a.arrays["values"], rest, bias, activation, multiplier)


def linear(
    x: Tensor,
    layout: str,
    values: Tensor,
    rest: Rest,
    bias: Tensor | None,
    activation: str | None = None,
    multiplier: Tensor | None = None,
) -> Tensor:
    """``spmm`` on bare tensors; ``layout`` is a token.

    Calls the kernel directly where nobody records the call and these tensors are known; every
    line on that way costs each layer of each token. All else, errors included, is the operator's.
    """
    end = None
    if activation is not None or multiplier is not None:
        end = _end(activation, multiplier)
    if (
        not _is_dynamo()
        and type(x) is Tensor
        and forward_ad._current_level < 0
        and not (_is_grad_enabled() and _needs_grad(x, values, bias, multiplier))
        and not _count_modes()
        and not _is_tracing()
    ):
        if x.is_cpu:
            entry = entries.get(id(values))
            if entry is not None and entry.fits(layout, values, rest) and not _is_autocast("cpu"):
                out = entry.run_direct(x, bias, end)
                if out is not None:
                    return out
        elif x.is_cuda and end is None and not _is_autocast("cuda"):
            out = cuda_spmm.direct(x, layout, values, rest, bias)
            if out is not None:
                return out
    y = _through_torch(x, layout, values, rest, bias)
    return y if end is None else _finish(y, activation, multiplier)


def _through_torch(
    x: Tensor, layout: str, values: Tensor, rest: Rest, bias: Tensor | None
) -> Tensor:
    if not isinstance(x, Tensor):
        raise TamisTypeError(
            f"spmm: x: got {type(x).__name__}, wanted a torch.Tensor; convert it with torch.as_tensor."
        )
    x = autocast(x)
    if (_is_dynamo() or _is_tracing() or _count_modes()) and torch.onnx.is_in_onnx_export():
        raise TamisUnsupported(
            "torch.onnx.export: model: got a compressed layer, for which ONNX has no operator, wanted dense "
            "ones; export tamis.dense_(copy.deepcopy(model))."
        )
    if not _is_dynamo() and transformed():
        how = Layout.from_token(layout)
        _check_x(x, values, how)
        dense = unpack_traced(values, how, *rest)
        return functional.linear(x, dense.to(x.device, x.dtype), fit_bias(bias, x, how))
    y: Tensor = torch.ops.tamis.spmm(x, values, *rest, bias, layout)
    return y


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def _end(activation: str | None, multiplier: Tensor | None) -> tuple[int, Tensor | None]:
    code = _CODES.get(activation)
    if code is None:
        raise TamisValueError(
            f"spmm: activation: got {activation!r}, wanted None, {', '.join(map(repr, ACTIVATIONS))}."
        )
    return code, multiplier


def _finish(y: Tensor, activation: str | None, multiplier: Tensor | None) -> Tensor:
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if multiplier is None:
        return y
    multiplier = autocast(multiplier)
    if multiplier.shape != y.shape:
        raise TamisValueError(
            f"spmm: multiplier: got shape {list(multiplier.shape)}, wanted {list(y.shape)}, that of "
            "the product."
        )
    if multiplier.dtype != y.dtype:
        raise TamisTypeError(
            f"spmm: multiplier: got {multiplier.dtype}, wanted {y.dtype}, that of x; convert it."
        )
    return y * multiplier


def unpack(layout: str, values: Tensor, rest: Rest) -> Tensor:
    """Dense w [rows, cols] in the dtype of ``values``; float32 where they are int8 codes."""
    if not _is_dynamo() and transformed():
        return unpack_traced(values, Layout.from_token(layout), *rest)
    dense: Tensor = torch.ops.tamis.unpack(values, *rest, layout)
    return dense


def _bad_x(x: Tensor, layout: Layout) -> TamisTypeError | TamisValueError:
    if x.dtype not in DTYPE_NAME:
        return TamisTypeError(
            f"spmm: x: got dtype {x.dtype}, wanted torch.float32, float16 or bfloat16; convert it "
            "with x.to(torch.float32)."
        )
    return TamisValueError(
        f"spmm: x: got shape {list(x.shape)}, wanted [..., {layout.cols}] for a weight of shape "
        f"[{layout.rows}, {layout.cols}]."
    )


def _check_x(x: Tensor, values: Tensor, layout: Layout) -> None:
    if x.dtype not in DTYPE_NAME or x.dim() == 0:
        raise _bad_x(x, layout)
    if x.shape[-1] != layout.cols:
        raise _bad_x(x, layout)
    if x.device != values.device and not _packed_from_host(x, values, layout):
        raise TamisTypeError(
            f"spmm: x: got device {x.device}, wanted the weight's device {values.device}; move one "
            "of them with .to()."
        )


def _packed_from_host(x: Tensor, values: Tensor, layout: Layout) -> bool:
    """Whether x's device reads a packed copy of arrays that lie in host memory."""
    return x.is_cuda and values.is_cpu and cuda_spmm.takes(x.dtype, layout)


# The operators. CPU and CUDA run the core; every other device runs plain torch.

_lib: Any = torch.library.Library("tamis", "DEF")  # type: ignore[no-untyped-call]
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
    return entry_of(token, values, (rest[0], rest[1], rest[2], rest[3])).run(x, bias)


def _spmm_any(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *rest, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    dense = unpack(token, values, (rest[0], rest[1], rest[2], rest[3]))
    return functional.linear(x, dense.to(x.device, x.dtype), fit_bias(bias, x, layout))


def _spmm_cuda(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *rest, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    bias = fit_bias(bias, x, layout)
    y = cuda_spmm.spmm(x, values, (rest[0], rest[1], rest[2], rest[3]), bias, layout)
    return _spmm_any(x, values, *rest_bias_layout) if y is None else y


def _spmm_fake(x: Tensor, values: Tensor, *rest_bias_layout: Any) -> Tensor:
    *_, bias, token = rest_bias_layout
    layout = Layout.from_token(token)
    _check_x(x, values, layout)
    fit_bias(bias, x, layout)
    return x.new_empty((*x.shape[:-1], layout.rows))


def _unpack_cpu(values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    return entry_of(token, values, (rest[0], rest[1], rest[2], rest[3])).unpack()


def _unpack_any(values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    return unpack_dense(values, Layout.from_token(token), *rest)


def _unpack_cuda(values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    layout = Layout.from_token(token)
    mask = cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], values.dtype)
    if mask is not None:
        return cuda_spmm_grad.unpack(mask, values)
    dense = cuda_spmm.unpack(values, (rest[0], rest[1], rest[2], rest[3]), layout)
    return _unpack_any(values, *rest_layout) if dense is None else dense


def _unpack_fake(values: Tensor, *rest_layout: Any) -> Tensor:
    layout = Layout.from_token(rest_layout[-1])
    dtype = torch.float32 if layout.quantized else values.dtype
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


def _gather_cuda(dense: Tensor, *structure_nnz_layout: Any) -> Tensor:
    *structure, nnz, token = structure_nnz_layout
    layout = Layout.from_token(token)
    like = dense.new_empty(nnz)
    mask = cuda_spmm_grad.mask_of(layout, like, structure[0], structure[1], dense.dtype)
    if mask is None:
        return _gather_any(dense, *structure_nnz_layout)
    return cuda_spmm_grad.gather(mask, dense)


def _gather_fake(dense: Tensor, *structure_nnz_layout: Any) -> Tensor:
    return dense.new_empty((structure_nnz_layout[-2],))


_lib.impl("spmm", _spmm_cpu, "CPU")
_lib.impl("spmm", _spmm_cuda, "CUDA")
_lib.impl("spmm", _spmm_any, "CompositeExplicitAutograd")
_lib.impl("unpack", _unpack_cpu, "CPU")
_lib.impl("unpack", _unpack_cuda, "CUDA")
_lib.impl("unpack", _unpack_any, "CompositeExplicitAutograd")
_lib.impl("gather", _gather_cuda, "CUDA")
_lib.impl("gather", _gather_any, "CompositeExplicitAutograd")
torch.library.register_fake("tamis::spmm", _spmm_fake, lib=_lib)
torch.library.register_fake("tamis::unpack", _unpack_fake, lib=_lib)
torch.library.register_fake("tamis::gather", _gather_fake, lib=_lib)


# Gradients: of spmm by spmm_t and sddmm, of unpack and gather by each other.


def _spmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, mask, row_offsets, col_indices, scales, bias, layout = inputs
    ctx.layout = layout
    ctx.bias_dtype = None if bias is None else bias.dtype
    kept_x = x if ctx.needs_input_grad[1] else None
    ctx.save_for_backward(kept_x, values, mask, row_offsets, col_indices, scales)
    ctx.x_dtype = x.dtype


def _spmm_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, mask, row_offsets, col_indices, scales = ctx.saved_tensors
    if gy.device != values.device:
        raise TamisTypeError(
            f"spmm: values: got a weight in host memory under x on {gy.device}, wanted both on one "
            "device for gradients; call keep_saved() of layers that prepack_ left packed."
        )
    grad_x = grad_values = grad_bias = None
    rest = mask, row_offsets, col_indices, scales
    if ctx.needs_input_grad[0]:
        grad_x = spmm_grad.spmm_t(gy, ctx.layout, values, rest)
    if ctx.needs_input_grad[1]:
        grad_values = spmm_grad.sddmm(gy, x, ctx.layout, values, rest)
    if ctx.needs_input_grad[6]:
        grad_bias = gy.reshape(-1, gy.shape[-1]).sum(0).to(ctx.bias_dtype)
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
