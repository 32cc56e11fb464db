"""conv2d: 2-D convolution with a compressed weight, depthwise convolution and means of planes.

``torch.ops.tamis.conv2d`` takes the arrays of a csr matrix, or of blocks of r x 1, whose columns
are those of a torch weight [out, channels, kernel_h, kernel_w] in order. Activations keep torch's
NCHW layout: planes of neighbouring pixels are what the kernel's vectors hold (Fast Sparse ConvNets,
arXiv:1911.09723). x may have any strides, channels-last included; y is contiguous NCHW.

The CPU runs the core in float32; other dtypes and devices unpack the weight and use torch's own
convolution. Gradients do too. ``bounds`` clamp y after the bias: (0, inf) is ReLU, (0, 6) ReLU6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional, grad

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops.dense import unpack_dense
from tamis.ops.entry import entries, entry_of, fit_bias
from tamis.ops.handle import core_errors
from tamis.ops.spmm import unpack
from tamis.ops.tensors import autocast, transformed

__all__ = ["NO_BOUNDS", "Window", "conv2d", "depthwise_conv2d", "plane_mean"]

Pair = tuple[int, int]
NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie, as height and width; padding is with zeros."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        flat = (*self.kernel, *self.stride, *self.padding, *self.dilation)
        object.__setattr__(self, "flat", flat)

    # kernel, stride, padding, dilation in one tuple, as the core takes them.
    flat: tuple[int, ...] = ()

    @classmethod
    def of(cls, flat: tuple[int, ...] | list[int]) -> Window:
        """The window of eight integers in the order of ``flat``."""
        a, b, c, d, e, f, g, h = flat
        return cls((a, b), (c, d), (e, f), (g, h))

    def out_size(self, height: int, width: int) -> Pair:
        """Height and width of the output for an image of this size."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation,
                    strict=True)  # fmt: skip
        out_h, out_w = (
            (size + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, stride, pad, dilation in sizes
        )
        return out_h, out_w


def conv2d(  # noqa: PLR0913
    x: Tensor,
    layout: str,
    values: Tensor,
    row_offsets: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    window: Window,
    bounds: tuple[float, float] = NO_BOUNDS,
) -> Tensor:
    """Y [n, out, h', w'] = clamp(convolution of x [n, c, h, w] + bias); ``layout`` is a token.

    Raises:
        TamisTypeError: ``x`` has no floating dtype.
        TamisValueError: ``x`` or ``bias`` has the wrong shape.
    """
    x = autocast(x)
    if not torch.compiler.is_dynamo_compiling() and transformed():
        how = Layout.from_token(layout)
        _check_x(x, how, window)
        dense = unpack(layout, values, (None, row_offsets, col_indices, None)).to(x.dtype)
        return _dense(x, dense, fit_bias(bias, x, how), window, bounds)
    if _records(x, values, bias):
        y: Tensor = torch.ops.tamis.conv2d(
            x, values, row_offsets, col_indices, bias, layout, window.flat, *bounds
        )
        return y
    return _run(x, values, row_offsets, col_indices, bias, layout, window, bounds)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    bounds: tuple[float, float] = NO_BOUNDS,
) -> Tensor:
    """Y [n, c, h', w'] of x [n, c, h, w] and weight [c, 1, kernel_h, kernel_w], clamped.

    Raises:
        TamisValueError: ``x`` or ``bias`` has the wrong shape.
    """
    channels = weight.shape[0]
    if x.dim() != 4 or x.shape[1] != channels:
        raise TamisValueError(
            f"depthwise_conv2d: x: got shape {list(x.shape)}, wanted [n, {channels}, h, w]."
        )
    x = autocast(x)
    plain = x.dtype is torch.float32 and weight.dtype is torch.float32 and x.is_cpu
    if not plain or _records(x, weight, bias) or not weight.is_contiguous():
        y = functional.conv2d(
            x, weight, bias, window.stride, window.padding, window.dilation, channels
        )
        return _clamp(y, bounds)
    if bias is not None and (bias.shape != (channels,) or bias.dtype is not torch.float32):
        raise TamisValueError(
            f"depthwise_conv2d: bias: got {list(bias.shape)} of {bias.dtype}, wanted [{channels}] "
            "of torch.float32."
        )
    y, size = _output(x, channels, window)
    with core_errors():
        _C.depthwise_conv2d(
            weight.data_ptr(), x.data_ptr(), size, window.flat, x.stride(),  # type: ignore[arg-type]
            0 if bias is None else bias.data_ptr(), y.data_ptr(), *bounds,
        )  # fmt: skip
    return y


def plane_mean(x: Tensor) -> Tensor:
    """Mean of each plane, [n, c, 1, 1] of x [n, c, h, w]: adaptive average pooling to one pixel."""
    if x.dtype is not torch.float32 or not x.is_cpu or _records(x) or not x.is_contiguous():
        return x.mean((2, 3), keepdim=True)
    n, c, h, w = x.shape
    y = x.new_empty(n, c, 1, 1)
    with core_errors():
        _C.plane_mean(x.data_ptr(), n * c, h * w, h * w, y.data_ptr())
    return y


def _records(*tensors: Tensor | None) -> bool:
    """Whether someone watches the call: gradients, a tracer, a compiler or another mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or transformed()
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors if t is not None)
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


def _clamp(y: Tensor, bounds: tuple[float, float]) -> Tensor:
    return y if bounds == NO_BOUNDS else y.clamp(*bounds)


def _check_x(x: Tensor, layout: Layout, window: Window) -> None:
    area = window.kernel[0] * window.kernel[1]
    if not x.is_floating_point():
        raise TamisTypeError(f"conv2d: x: got {x.dtype}, wanted a floating dtype; convert it.")
    if x.dim() != 4 or x.shape[1] * area != layout.cols:
        raise TamisValueError(
            f"conv2d: x: got shape {list(x.shape)}, wanted [n, {layout.cols // area}, h, w] for a "
            f"weight of {layout.rows} outputs and {layout.cols // area} channels."
        )
    if min(window.out_size(*x.shape[2:])) < 1:
        raise TamisValueError(
            f"conv2d: x: got images of {x.shape[2]} x {x.shape[3]} pixels, wanted at least the "
            f"window {window.kernel} less its padding {window.padding}."
        )


def _output(x: Tensor, channels: int, window: Window) -> tuple[Tensor, tuple[int, int, int, int]]:
    n, c, h, w = x.shape
    out_h, out_w = window.out_size(h, w)
    return x.new_empty((n, channels, max(out_h, 0), max(out_w, 0))), (n, c, h, w)


def _run(  # noqa: PLR0913
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    token: str,
    window: Window,
    bounds: tuple[float, float],
) -> Tensor:
    rest = (None, row_offsets, col_indices, None)
    entry = entries.get(id(values))
    if entry is None or not entry.fits(token, values, rest):
        layout = Layout.from_token(token)
    else:
        layout = entry.layout
    _check_x(x, layout, window)
    if not x.is_cpu or x.dtype is not torch.float32 or layout.dtype != "f32":
        dense = unpack_dense(values, layout, *rest).to(x.dtype)
        return _dense(x, dense, fit_bias(bias, x, layout), window, bounds)
    if entry is None or not entry.fits(token, values, rest):
        entry = entry_of(token, values, rest)
    bias = fit_bias(bias, x, layout)
    if bias is not None:
        bias = bias.contiguous()
    y, size = _output(x, layout.rows, window)
    with core_errors():
        _C.conv2d(
            entry.matrix, x.data_ptr(), size, window.flat, x.stride(),  # type: ignore[arg-type]
            0 if bias is None else bias.data_ptr(), y.data_ptr(), *bounds,
        )  # fmt: skip
    return y


def _dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    bounds: tuple[float, float],
) -> Tensor:
    weight = weight.reshape(weight.shape[0], x.shape[1], *window.kernel)
    y = functional.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)
    return _clamp(y, bounds)


# The operator, for whoever records the call.

_lib: Any = torch.library.Library("tamis", "FRAGMENT")  # type: ignore[no-untyped-call]
_lib.define(
    "conv2d(Tensor x, Tensor values, Tensor row_offsets, Tensor col_indices, Tensor? bias, "
    "str layout, int[] window, float low, float high) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _conv2d_any(x: Tensor, *operands: Any) -> Tensor:
    *tensors, layout, window, low, high = operands
    values, row_offsets, col_indices, bias = tensors
    how = (layout, Window.of(window), (low, high))
    return _run(x, values, row_offsets, col_indices, bias, *how)


def _conv2d_fake(x: Tensor, *operands: Any) -> Tensor:
    *_, bias, token, flat, _low, _high = operands
    layout, window = Layout.from_token(token), Window.of(flat)
    _check_x(x, layout, window)
    fit_bias(bias, x, layout)
    return x.new_empty((x.shape[0], layout.rows, *window.out_size(*x.shape[2:])))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, row_offsets, col_indices, bias, layout, window, low, high = inputs
    ctx.layout, ctx.window, ctx.bounds = layout, Window.of(window), (low, high)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.x_shape = x.shape
    kept_x = x if ctx.needs_input_grad[1] else None
    kept_y = None if ctx.bounds == NO_BOUNDS else output
    ctx.save_for_backward(kept_x, values, row_offsets, col_indices, kept_y)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, row_offsets, col_indices, y = ctx.saved_tensors
    layout, window = Layout.from_token(ctx.layout), ctx.window
    if y is not None:  # as torch's hardtanh: nothing passes a bound
        gy = gy * ((y > ctx.bounds[0]) & (y < ctx.bounds[1]))
    shape = (layout.rows, ctx.x_shape[1], *window.kernel)
    how = (window.stride, window.padding, window.dilation)
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        dense = unpack(ctx.layout, values, (None, row_offsets, col_indices, None))
        weight = dense.to(gy.dtype).reshape(shape)
        grad_x = grad.conv2d_input(ctx.x_shape, weight, gy, *how)  # type: ignore[no-untyped-call]
    if ctx.needs_input_grad[1]:
        full = grad.conv2d_weight(x, shape, gy, *how)  # type: ignore[no-untyped-call]
        full = full.reshape(layout.rows, -1)
        grad_values = torch.ops.tamis.gather(
            full, None, row_offsets, col_indices, values.shape[0], ctx.layout
        ).to(values.dtype)
    if ctx.needs_input_grad[4]:
        grad_bias = gy.sum((0, 2, 3)).to(ctx.bias_dtype)
    return grad_x, grad_values, None, None, grad_bias, None, None, None, None


_lib.impl("conv2d", _conv2d_any, "CompositeExplicitAutograd")
torch.library.register_fake("tamis::conv2d", _conv2d_fake, lib=_lib)
torch.library.register_autograd("tamis::conv2d", _backward, setup_context=_setup, lib=_lib)
