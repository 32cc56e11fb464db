"""The gradients of y = x w^T for a compressed w, without a dense gradient or a dense w.

``spmm_t`` is dx[..., k] = sum_n dy[..., n] * w[n, k]; ``sddmm`` is dw[i] = sum over tokens of
dy[row of i] * x[column of i] for each stored value i. Both are torch operators with fake versions and
gradients, which are each other and ``spmm``. They have kernels for bitmap, nm and csr weights on the
CPU and for bitmap and nm ones in 16 bits on CUDA; the rest, and what is expected to be faster so,
goes through a dense product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops import cost, cuda_spmm_grad
from tamis.ops.dense import gather_dense, unpack_dense
from tamis.ops.entry import entry_of
from tamis.ops.handle import CODE, core_errors
from tamis.ops.tensors import DTYPE_NAME, Rest

__all__ = ["sddmm", "spmm_t"]

# ns of one core (Emerald Rapids, AVX-512): of a stored value and token by the kernels, of a weight by
# what unpacks w or gathers dw around torch's product (bench/grad.py). The product's time is the cost
# model's. More threads speed up all of it.
_KERNEL = {"spmm_t": 0.1, "sddmm": 0.046}
_AROUND = {"spmm_t": 1.0, "sddmm": 7.0}
_TOKENS = 64  # that the kernels take at a time


def spmm_t(dy: Tensor, layout: str, values: Tensor, rest: Rest) -> Tensor:
    """Product dx [..., cols] = dy [..., rows] @ w in dy's dtype; ``layout`` is a token.

    Differentiable in ``dy`` and ``values``.

    Raises:
        TamisTypeError: ``dy`` is not float32, float16 or bfloat16, or lies on another device.
        TamisValueError: ``dy`` has the wrong shape.
    """
    dx: Tensor = torch.ops.tamis.spmm_t(dy, values, *rest, layout)
    return dx


def sddmm(dy: Tensor, x: Tensor, layout: str, values: Tensor, rest: Rest) -> Tensor:
    """Values dw [nnz], in the dtype of ``values``, of dy [..., rows] and x [..., cols].

    ``values`` say how many there are and of what dtype; they are not read. Differentiable in ``dy``
    and ``x``.

    Raises:
        TamisTypeError: ``dy`` or ``x`` is not float32, float16 or bfloat16, or they differ in dtype
            or device.
        TamisValueError: ``dy`` or ``x`` has the wrong shape.
    """
    dw: Tensor = torch.ops.tamis.sddmm(dy, x, values, *rest[:3], layout)
    return dw


def _check(op: str, name: str, t: Tensor, width: int, like: Tensor) -> None:
    if t.dtype not in DTYPE_NAME or t.device != like.device:
        raise TamisTypeError(
            f"{op}: {name}: got {t.dtype} on {t.device}, wanted float32, float16 or bfloat16 on "
            f"{like.device}; convert it."
        )
    if t.dim() == 0 or t.shape[-1] != width:
        raise TamisValueError(f"{op}: {name}: got shape {list(t.shape)}, wanted [..., {width}].")


def _check_sddmm(dy: Tensor, x: Tensor, values: Tensor, layout: Layout) -> None:
    _check("sddmm", "dy", dy, layout.rows, values)
    _check("sddmm", "x", x, layout.cols, values)
    if layout.quantized:
        raise TamisTypeError(
            f"sddmm: values: got codes of {layout.label}, wanted floats; codes are not trained."
        )
    if dy.dtype != x.dtype:
        raise TamisTypeError(f"sddmm: x: got {x.dtype}, wanted {dy.dtype}, that of dy; convert it.")
    if dy.shape[:-1] != x.shape[:-1]:
        raise TamisValueError(
            f"sddmm: x: got shape {list(x.shape)}, wanted {[*dy.shape[:-1], layout.cols]}, the "
            "tokens of dy."
        )


def _pays(op: str, layout: Layout, dtype: torch.dtype, tokens: int, nnz: int) -> bool:
    """Whether the CPU has a kernel that is expected to be faster than the dense way."""
    if layout.format not in ("bitmap", "nm", "csr") or layout.quantized:
        return False
    product = cost.dense_ns(DTYPE_NAME[dtype], layout.rows, layout.cols, tokens, threads=1)
    if product is None:
        return False
    dense = product + layout.rows * layout.cols * _AROUND[op]
    return nnz * -(-tokens // _TOKENS) * _TOKENS * _KERNEL[op] < dense


_lib: Any = torch.library.Library("tamis", "FRAGMENT")  # type: ignore[no-untyped-call]
_STRUCTURE = "Tensor? mask, Tensor? row_offsets, Tensor? col_indices"
_TAGS = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    f"spmm_t(Tensor dy, Tensor values, {_STRUCTURE}, Tensor? scales, str layout) -> Tensor",
    tags=_TAGS,
)
_lib.define(
    f"sddmm(Tensor dy, Tensor x, Tensor values, {_STRUCTURE}, str layout) -> Tensor", tags=_TAGS
)


def _spmm_t_any(dy: Tensor, values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    layout = Layout.from_token(token)
    _check("spmm_t", "dy", dy, layout.rows, values)
    return dy @ unpack_dense(values, layout, *rest).to(dy.dtype)


def _spmm_t_cpu(dy: Tensor, values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    layout = Layout.from_token(token)
    _check("spmm_t", "dy", dy, layout.rows, values)
    entry = entry_of(token, values, (rest[0], rest[1], rest[2], rest[3]))
    tokens = dy.reshape(-1, layout.rows).contiguous()
    if not _pays("spmm_t", layout, dy.dtype, len(tokens), values.numel()):
        return dy @ entry.unpack().to(dy.dtype)
    dx = dy.new_empty(*dy.shape[:-1], layout.cols)
    code = CODE[DTYPE_NAME[dy.dtype]]
    with core_errors():
        _C.spmm_t(entry.matrix, code, len(tokens), tokens.data_ptr(), dx.data_ptr())
    return dx


def _spmm_t_cuda(dy: Tensor, values: Tensor, *rest_layout: Any) -> Tensor:
    *rest, token = rest_layout
    layout = Layout.from_token(token)
    _check("spmm_t", "dy", dy, layout.rows, values)
    mask = cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], dy.dtype)
    if mask is None:
        return _spmm_t_any(dy, values, *rest_layout)
    return dy @ cuda_spmm_grad.unpack(mask, values)


def _spmm_t_fake(dy: Tensor, values: Tensor, *rest_layout: Any) -> Tensor:
    layout = Layout.from_token(rest_layout[-1])
    _check("spmm_t", "dy", dy, layout.rows, values)
    return dy.new_empty((*dy.shape[:-1], layout.cols))


def _sddmm_any(dy: Tensor, x: Tensor, values: Tensor, *structure_layout: Any) -> Tensor:
    *structure, token = structure_layout
    layout = Layout.from_token(token)
    _check_sddmm(dy, x, values, layout)
    full = dy.reshape(-1, layout.rows).t() @ x.reshape(-1, layout.cols)
    dw = gather_dense(full.contiguous(), layout, *structure)
    if dw.numel() != values.numel():
        raise TamisValueError(
            f"sddmm: values: got {values.numel()}, wanted {dw.numel()}, which the structure stores."
        )
    return dw.to(values.dtype)


def _sddmm_cpu(dy: Tensor, x: Tensor, values: Tensor, *structure_layout: Any) -> Tensor:
    *structure, token = structure_layout
    layout = Layout.from_token(token)
    _check_sddmm(dy, x, values, layout)
    tokens = x.reshape(-1, layout.cols).contiguous()
    if not _pays("sddmm", layout, dy.dtype, len(tokens), values.numel()):
        return _sddmm_any(dy, x, values, *structure_layout)
    entry = entry_of(token, values, (structure[0], structure[1], structure[2], None))
    outputs = dy.reshape(-1, layout.rows).contiguous()
    dw = torch.empty_like(values)
    code = CODE[DTYPE_NAME[dy.dtype]]
    with core_errors():
        _C.sddmm(
            entry.matrix, code, len(tokens), outputs.data_ptr(), tokens.data_ptr(), dw.data_ptr()
        )
    return dw


def _sddmm_cuda(dy: Tensor, x: Tensor, values: Tensor, *structure_layout: Any) -> Tensor:
    *structure, token = structure_layout
    layout = Layout.from_token(token)
    _check_sddmm(dy, x, values, layout)
    mask = cuda_spmm_grad.mask_of(layout, values, structure[0], structure[1], dy.dtype)
    if mask is None:
        return _sddmm_any(dy, x, values, *structure_layout)
    outputs, tokens = dy.reshape(-1, layout.rows), x.reshape(-1, layout.cols)
    return cuda_spmm_grad.gather(mask, outputs.t() @ tokens)


def _sddmm_fake(dy: Tensor, x: Tensor, values: Tensor, *structure_layout: Any) -> Tensor:
    _check_sddmm(dy, x, values, Layout.from_token(structure_layout[-1]))
    return torch.empty_like(values)


_lib.impl("spmm_t", _spmm_t_cpu, "CPU")
_lib.impl("spmm_t", _spmm_t_cuda, "CUDA")
_lib.impl("spmm_t", _spmm_t_any, "CompositeExplicitAutograd")
_lib.impl("sddmm", _sddmm_cpu, "CPU")
_lib.impl("sddmm", _sddmm_cuda, "CUDA")
_lib.impl("sddmm", _sddmm_any, "CompositeExplicitAutograd")
torch.library.register_fake("tamis::spmm_t", _spmm_t_fake, lib=_lib)
torch.library.register_fake("tamis::sddmm", _sddmm_fake, lib=_lib)


# Gradients.


def _spmm_t_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.layout = inputs
    ctx.save_for_backward(*tensors)


def _spmm_t_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dy, values, *rest = ctx.saved_tensors
    grad_dy = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_dy = torch.ops.tamis.spmm(grad, values, *rest, None, ctx.layout)
    if ctx.needs_input_grad[1]:
        grad_values = torch.ops.tamis.sddmm(dy, grad, values, *rest[:3], ctx.layout)
    return grad_dy, grad_values, None, None, None, None, None


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, _, *structure, ctx.layout = inputs
    ctx.save_for_backward(dy, x, *structure)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *structure = ctx.saved_tensors
    grad_dy = grad_x = None
    grad = grad.contiguous()
    if ctx.needs_input_grad[0]:
        grad_dy = torch.ops.tamis.spmm(x, grad, *structure, None, None, ctx.layout)
    if ctx.needs_input_grad[1]:
        grad_x = torch.ops.tamis.spmm_t(dy, grad, *structure, None, ctx.layout)
    return grad_dy, grad_x, None, None, None, None, None


torch.library.register_autograd(
    "tamis::spmm_t", _spmm_t_backward, setup_context=_spmm_t_setup, lib=_lib
)
torch.library.register_autograd(
    "tamis::sddmm", _sddmm_backward, setup_context=_sddmm_setup, lib=_lib
)
