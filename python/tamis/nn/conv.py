"""SparseConv2d: nn.Conv2d with a compressed weight; and the layers that keep its planes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import Layout
from tamis.nn.linear import SparseLinear
from tamis.ops.conv2d import NO_BOUNDS, Window, conv2d, depthwise_conv2d, plane_mean
from tamis.tensor.matrix import SparseMatrix

__all__ = ["DepthwiseConv2d", "PlaneMean", "SparseConv2d", "window_of"]


class SparseConv2d(SparseLinear):
    """y [n, out, h', w'] = convolution of x [n, c, h, w], weight compressed; for nn.Conv2d.

    A convolution of one group, 1x1 or larger, whose weight [out, c * kernel_h * kernel_w] is stored
    as csr, or as blocks of r x 1: r neighbouring outputs that share their inputs, which the kernels
    multiply faster (``pattern="block:4x1"`` prunes so). State, training and dtypes are those of
    SparseLinear; float32 on the CPU runs the sparse kernels.

    Attributes:
        window: Kernel, stride, padding and dilation.
        bounds: Clamp of the result, (low, high): what ``tamis.fuse_`` makes of a ReLU or ReLU6.

    Args:
        layout: csr, or block with blocks of one column; cols = c * kernel_h * kernel_w.
        nnz: Stored values.
        bias: Whether there is one.
        device: Of all arrays; "meta" for none yet.
        dtype: Of values and bias instead of the layout's.
        window: Where the taps lie.

    Raises:
        TamisUnsupported: The layout is another.
    """

    window: Window
    bounds: tuple[float, float]

    def __init__(
        self,
        layout: Layout,
        nnz: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        window: Window = Window(),  # noqa: B008
    ) -> None:
        columns = layout.format == "csr" or (layout.format == "block" and layout.block[1] == 1)
        if not columns or layout.dtype == "i8":
            raise TamisUnsupported(
                f"SparseConv2d: layout: got {layout.label}, wanted csr or block:Rx1 of floats; "
                "no other format has a convolution kernel."
            )
        super().__init__(layout, nnz, bias, device, dtype)
        self.window, self.bounds = window, NO_BOUNDS
        self.in_channels = layout.cols // (window.kernel[0] * window.kernel[1])
        self.out_channels = layout.rows

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, *, keep: Tensor | None = None, group: int = 1
    ) -> SparseConv2d:
        """SparseConv2d with the weights of ``conv`` where ``keep`` is true.

        Args:
            conv: Of one group, with zero padding given in pixels.
            keep: [out, c, kernel_h, kernel_w] bool; None keeps what is not zero.
            group: Neighbouring outputs that share one list of inputs; divides out. An input that
                one of them keeps is stored for all.

        Raises:
            TamisTypeError: ``conv`` is no nn.Conv2d of floats.
            TamisValueError: ``group`` does not divide the outputs, or the weight has a NaN.
            TamisUnsupported: ``conv`` has groups or other padding.
        """
        window = window_of(conv, "SparseConv2d.from_conv")
        if conv.groups != 1:
            raise TamisUnsupported(
                f"SparseConv2d.from_conv: conv: got {conv.groups} groups, wanted 1."
            )
        flat = nn.Linear(1, 1, bias=False, device="meta")
        flat.weight = nn.Parameter(
            conv.weight.detach().flatten(1), requires_grad=conv.weight.requires_grad
        )
        flat.bias = conv.bias  # type: ignore[assignment]
        layer = SparseLinear.from_linear(
            flat,
            keep=None if keep is None else keep.flatten(1),
            format="csr" if group == 1 else "block",
            block=(group, 1),
        )
        return cls.from_layer(layer, window).train(conv.training)

    @classmethod
    def from_layer(cls, layer: SparseLinear, window: Window) -> SparseConv2d:
        """SparseConv2d that shares the arrays of a SparseLinear on [.., c * kernel_h * kernel_w]."""
        made = cls(layer.layout, layer.nnz, layer.bias is not None, "meta", window=window)
        made.weight_values = layer.weight_values
        for name in ("row_offsets", "col_indices"):
            setattr(made, f"weight_{name}", getattr(layer, f"weight_{name}"))
        made.bias = layer.bias
        return made.train(layer.training)

    @classmethod
    def from_matrix(cls, a: SparseMatrix, bias: Tensor | None = None) -> SparseConv2d:
        """SparseConv2d of 1x1 taps that shares the arrays of ``a``, and ``bias``."""
        return cls.from_layer(SparseLinear.from_matrix(a, bias), Window())

    def forward(self, x: Tensor, *unused: Any) -> Tensor:
        """Convolution of x [n, c, h, w] or [c, h, w], in x's dtype, clamped to ``bounds``."""
        parameters, buffers = self._parameters, self._buffers
        y = conv2d(
            x if x.dim() != 3 else x.unsqueeze(0),
            self._token,
            parameters["weight_values"],  # type: ignore[arg-type]
            buffers["weight_row_offsets"],  # type: ignore[arg-type]
            buffers["weight_col_indices"],  # type: ignore[arg-type]
            parameters["bias"],
            self.window,
            self.bounds,
        )
        return y if x.dim() != 3 else y.squeeze(0)

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Taps of the window, as of nn.Conv2d; models that pad by themselves ask for these."""
        return self.window.kernel

    @property
    def stride(self) -> tuple[int, int]:
        """Step of the window."""
        return self.window.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side."""
        return self.window.padding

    @property
    def dilation(self) -> tuple[int, int]:
        """Distance of taps."""
        return self.window.dilation

    @property
    def groups(self) -> int:
        """One."""
        return 1

    @property
    def group(self) -> int:
        """Neighbouring outputs that share one list of inputs."""
        return max(self.layout.block[0], 1)

    def to_conv(self) -> nn.Conv2d:
        """nn.Conv2d with the dense weight; the bias is shared, ``bounds`` are not in it."""
        window = self.window
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, window.kernel, window.stride, window.padding,
            window.dilation, bias=False, device="meta",
        )  # fmt: skip
        with torch.no_grad():
            dense = self.weight.to_dense().reshape(conv.weight.shape)
            conv.weight = nn.Parameter(dense, self.weight.requires_grad)
        conv.bias = self.bias
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Channels, window, clamp, format and bytes."""
        window = self.window
        clamp = "" if self.bounds == NO_BOUNDS else f", bounds={self.bounds}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, "
            f"stride={window.stride}, padding={window.padding}{clamp}, {super().extra_repr()}"
        )


class DepthwiseConv2d(nn.Module):
    """nn.Conv2d with as many groups as channels, by planes and with a clamp; float32 on the CPU.

    Args:
        conv: Whose weight and bias are shared.
        bounds: Clamp of the result.

    Raises:
        TamisTypeError: ``conv`` is no nn.Conv2d.
        TamisUnsupported: It is not depthwise, or pads otherwise than with zeros.
    """

    def __init__(self, conv: nn.Conv2d, bounds: tuple[float, float] = NO_BOUNDS) -> None:
        super().__init__()
        self.window, self.bounds = window_of(conv, "DepthwiseConv2d"), bounds
        if not conv.groups == conv.in_channels == conv.out_channels:
            raise TamisUnsupported(
                f"DepthwiseConv2d: conv: got {conv.groups} groups of {conv.in_channels} channels to "
                f"{conv.out_channels}, wanted one of each channel."
            )
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution of x [n, c, h, w], clamped."""
        return depthwise_conv2d(x, self.weight, self.bias, self.window, self.bounds)

    def extra_repr(self) -> str:
        """Channels, window and clamp."""
        window, clamp = self.window, "" if self.bounds == NO_BOUNDS else f", bounds={self.bounds}"
        return (
            f"{self.weight.shape[0]}, kernel_size={window.kernel}, stride={window.stride}, "
            f"padding={window.padding}, bias={self.bias is not None}{clamp}"
        )


class PlaneMean(nn.Module):
    """nn.AdaptiveAvgPool2d(1): the mean of each plane, [n, c, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Means of x [n, c, h, w]."""
        return plane_mean(x)


def window_of(conv: nn.Conv2d, caller: str) -> Window:
    """The window of a convolution.

    Raises:
        TamisTypeError: ``conv`` is no nn.Conv2d.
        TamisUnsupported: It pads otherwise than with zeros, the same on both sides.
    """
    if not isinstance(conv, nn.Conv2d):
        raise TamisTypeError(f"{caller}: conv: got {type(conv).__name__}, wanted nn.Conv2d.")
    kernel, stride, dilation = (
        _pair(pair) for pair in (conv.kernel_size, conv.stride, conv.dilation)
    )
    padding = conv.padding
    if padding == "valid":
        padding = (0, 0)
    if padding == "same" and all(
        (k - 1) * d % 2 == 0 for k, d in zip(kernel, dilation, strict=True)
    ):
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str) or (conv.padding_mode != "zeros" and any(padding)):
        raise TamisUnsupported(
            f"{caller}: conv: got padding {padding!r} with {conv.padding_mode!r}, wanted zeros, as "
            "many on both sides."
        )
    return Window(kernel, stride, _pair(padding), dilation)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise TamisValueError(f"Window: got {value!r}, wanted a height and a width.")
    return int(value[0]), int(value[1])
