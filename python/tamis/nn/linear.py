"""SparseLinear: nn.Linear whose weight is stored compressed and multiplied as stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.nn.weight import SparseWeight
from tamis.ops import cuda_packed
from tamis.ops.spmm import linear
from tamis.ops.tensors import DTYPE_NAME, INDEX_DTYPE, REST, TORCH_DTYPE, Rest
from tamis.tensor.compress import compress
from tamis.tensor.matrix import SparseMatrix

__all__ = ["SparseLinear", "SparseWeight"]


class SparseLinear(nn.Module):
    """y [..., out] = x [..., in] @ w.T + bias, w compressed; a drop-in for nn.Linear.

    The constructor makes an empty layer to load into: memory is there, contents are not, and a
    forward refuses them until a state is loaded. ``from_linear`` and ``from_matrix`` fill it.

    State: ``weight_values`` (a Parameter; a buffer of codes), the index arrays of the format as
    buffers ``weight_mask``, ``weight_row_offsets``, ``weight_col_indices``, ``weight_scales``, and
    ``bias``. Training updates the kept values alone, so pruned weights stay zero under any
    optimizer. ``.to(dtype)`` converts values and bias, never indices or scales.

    x may be float32, float16 or bfloat16 whatever the weight's dtype; y has x's dtype. CUDA kernels
    take bitmap and nm weights of x's dtype, 16-bit x with int8 ones (a scale per row, or per group of a
    multiple of 128 inputs) and 4-bit groupq ones too, up to as many tokens as
    ``tamis.ops.cuda_spmm.spmm`` says; all other formats are read there as a bitmap in x's dtype, which
    is made once and lies beside them. More tokens, and all on other devices, expand the weight and
    multiply densely.

    ``transposed`` says that the layer stands for transformers' Conv1D, whose dense weight is [in, out].
    ``place`` is the name by which a model has the layer, for messages.

    ``packed_on`` is None, or the CUDA device that holds the weight packed and nothing else, while the
    arrays stay in host memory wherever the layer is moved (``tamis.prepack_``).

    With int8 values the AVX-512, AVX2 and CUDA kernels of bitmap and nm also quantize x, as torch's dynamic
    quantization does: 8 bits and one step per token and 256 inputs. An element then errs by at most
    1/254 of the largest of its 256; a NaN or Inf in a token makes its whole output NaN. groupq does
    so where the CPU has VNNI and that is expected to be faster: from three tokens on, u4 on Zen 4 and
    Emerald Rapids mostly from one on, but not bf16 of many tokens where BF16 or AMX multiplies it.
    Which kernel runs ``tamis.explain`` says.

    Args:
        layout: Format, shape and value dtype.
        nnz: Stored values (block: zeros in blocks included).
        bias: Whether there is one.
        device: Of all arrays; "meta" for none yet.
        dtype: Of values and bias instead of the layout's; of the bias alone if values are int8.

    Raises:
        TamisTypeError: ``layout`` is none, or ``dtype`` not float32, float16 or bfloat16.
        TamisValueError: No matrix of this layout stores ``nnz`` values.
    """

    weight_values: Tensor
    bias: Tensor | None
    packed_on: torch.device | None = None
    transposed: bool = False
    place: str = ""

    def __init__(
        self,
        layout: Layout,
        nnz: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layout, Layout):
            raise TamisTypeError(
                f"SparseLinear: layout: got {type(layout).__name__}, wanted a tamis.Layout; to compress "
                "a layer call SparseLinear.from_linear(nn.Linear(...))."
            )
        if dtype is not None and not layout.quantized:
            layout = replace(layout, dtype=_float_name(dtype))
        self._set_layout(layout, dtype)
        self.in_features, self.out_features = layout.cols, layout.rows
        shapes = layout.array_shapes(nnz)
        values = torch.zeros(shapes["values"], dtype=TORCH_DTYPE[layout.dtype], device=device)
        if layout.quantized:
            self.register_buffer("weight_values", values)
        else:
            self.weight_values = nn.Parameter(values)
        for name in REST:
            made = None
            if name in shapes:
                made = torch.zeros(
                    shapes[name], dtype=INDEX_DTYPE[layout.index_dtype(name)], device=device
                )
            self.register_buffer(f"weight_{name}", made)
        made = torch.zeros(layout.rows, dtype=self.float_dtype, device=device) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        keep: Tensor | None = None,
        format: str = "auto",
        dtype: str | None = None,
        n_m: tuple[int, int] | None = None,
        block: tuple[int, int] | None = None,
        group_size: int = 0,
    ) -> SparseLinear:
        """SparseLinear with the weights of ``linear`` where ``keep`` is true; see ``compress``.

        ``format="auto"`` is a bitmap where no format is smaller than dense: compare ``layer.nbytes``
        with ``layer.layout.dense_nbytes``. The bias is shared and keeps its dtype even if ``dtype`` is
        another; gradients are required where the source requires them.

        Raises:
            TamisTypeError: ``linear`` has no 2-D float weight, or an option has an unfit type.
            TamisValueError: The weight has a NaN or does not satisfy the pattern.
        """
        weight = getattr(linear, "weight", None)
        if not isinstance(weight, Tensor):
            raise TamisTypeError(
                f"SparseLinear.from_linear: linear: got {type(linear).__name__}, wanted nn.Linear."
            )
        a = compress(
            weight,
            format,
            keep,
            dtype,
            (2, 4) if n_m is None else n_m,
            (16, 16) if block is None else block,
            group_size,
        )
        layer = cls.from_matrix(a, linear.bias)
        layer.weight_values.requires_grad_(weight.requires_grad and not a.layout.quantized)
        if a.layout.quantized:
            layer._set_layout(a.layout, weight.dtype)
        return layer.train(linear.training)

    @classmethod
    def from_matrix(cls, a: SparseMatrix, bias: Tensor | None = None) -> SparseLinear:
        """SparseLinear that shares the arrays of ``a``, and ``bias``.

        Raises:
            TamisTypeError: ``a`` is no SparseMatrix, or ``bias`` not float32, float16 or bfloat16.
            TamisValueError: ``bias`` does not have one element per row.
        """
        if not isinstance(a, SparseMatrix):
            raise TamisTypeError(
                f"SparseLinear.from_matrix: a: got {type(a).__name__}, wanted a SparseMatrix; make "
                "it by tamis.compress."
            )
        if bias is not None:
            _float_name(bias.dtype)
        if bias is not None and bias.shape != (a.shape[0],):
            raise TamisValueError(
                f"SparseLinear.from_matrix: bias: got shape {list(bias.shape)}, wanted "
                f"[{a.shape[0]}]."
            )
        a = a.to_tensors()
        layer = cls(a.layout, a.nnz, bias is not None, "meta")
        if a.layout.quantized:
            layer._set_layout(a.layout, torch.float32 if bias is None else bias.dtype)
            layer.weight_values = a.arrays["values"]
        else:
            layer.weight_values = _parameter(a.arrays["values"])
        for name in REST:
            setattr(layer, f"weight_{name}", a.arrays.get(name))
        if bias is not None:
            layer.bias = _parameter(bias)
        return layer

    def forward(
        self, x: Tensor, activation: str | None = None, multiplier: Tensor | None = None
    ) -> Tensor:
        """Product y [..., out_features] = activation(x @ w.T + bias) * multiplier in x's dtype.

        Args:
            x: [..., in_features].
            activation: "relu", "gelu", "gelu_tanh", "silu" or None.
            multiplier: [..., out_features], such as the other half of a gated unit, or None.

        Raises:
            TamisTypeError: ``x`` has no such dtype or lies elsewhere, or ``multiplier`` differs in dtype.
            TamisValueError: ``x`` or ``multiplier`` has the wrong shape; no such activation.
        """
        parameters, buffers = self._parameters, self._buffers  # self.weight_values is 10 x slower
        values = (parameters if "weight_values" in parameters else buffers)["weight_values"]
        return linear(
            x,
            self._token,
            values,  # type: ignore[arg-type]
            (
                buffers["weight_mask"],
                buffers["weight_row_offsets"],
                buffers["weight_col_indices"],
                buffers["weight_scales"],
            ),
            parameters["bias"],
            activation,
            multiplier,
        )

    @property
    def layout(self) -> Layout:
        """What the arrays mean."""
        return self._layout

    @property
    def float_dtype(self) -> torch.dtype:
        """Dtype of the dense weight: that of the values, or of the bias where they are int8."""
        return self._float_dtype

    @property
    def weight(self) -> SparseWeight:
        """Handle with dtype, device, shape and to_dense(); not a tensor."""
        return SparseWeight(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of nn.Module, which ``layer.weight = ...`` and torch.nn.utils call; there is no such one.

        Raises:
            TamisTypeError: It would replace the compressed weight.
        """
        if name == "weight" or isinstance(param, SparseWeight):
            raise TamisTypeError(
                f"SparseLinear.{name}: got a new parameter, wanted the compressed weight to stay; change "
                "weight_values, or call tamis.dense_(model) first."
            )
        super().register_parameter(name, param)

    @property
    def matrix(self) -> SparseMatrix:
        """SparseMatrix on this layer's arrays."""
        names = zip(REST, self.rest(), strict=True)
        arrays = {name: array for name, array in names if array is not None}
        return SparseMatrix(self.layout, {"values": self.weight_values, **arrays})

    @property
    def nnz(self) -> int:
        """Stored values."""
        return self.layout.stored(self.weight_values.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed weight, without the bias."""
        return self.layout.nbytes(self.nnz)

    def rest(self) -> Rest:
        """The arrays after ``weight_values``, None where the format has none."""
        mask, row_offsets, col_indices, scales = (self._buffers[f"weight_{n}"] for n in REST)
        return mask, row_offsets, col_indices, scales

    def to_linear(self) -> nn.Linear:
        """nn.Linear with the dense weight in ``float_dtype``; the bias is shared."""
        linear = nn.Linear(self.in_features, self.out_features, False, device="meta")
        with torch.no_grad():
            linear.weight = nn.Parameter(self.weight.to_dense(), self.weight.requires_grad)
        linear.bias = self.bias  # type: ignore[assignment]
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Shape, format, sparsity and bytes."""
        sparsity = 1.0 - self.nnz / (self.in_features * self.out_features)
        saved = self.nbytes / self.layout.dense_nbytes
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.layout.label}, sparsity={sparsity:.1%}, "
            f"nbytes={self.nbytes:,} = {saved:.0%} of dense"
        )

    def _set_layout(self, layout: Layout, float_dtype: torch.dtype | None = None) -> None:
        self._layout = layout
        self._token = layout.token
        if not layout.quantized:
            self._float_dtype = TORCH_DTYPE[layout.dtype]
        else:
            self._float_dtype = float_dtype or torch.get_default_dtype()
            _float_name(self._float_dtype)

    def keep_packed(self, device: torch.device) -> None:
        """Moves the arrays to host memory, where they stay; ``device`` is to hold them packed alone."""
        self._move_arrays(torch.device("cpu"))
        self.packed_on = device

    def keep_saved(self) -> None:
        """Moves the arrays back to the device that holds them packed, so that they can be trained."""
        if self.packed_on is not None:
            self._move_arrays(self.packed_on)
            self.packed_on = None

    def _move_arrays(self, device: torch.device) -> None:
        for array in (self.weight_values, *self.rest()):
            if array is not None:
                array.data = array.data.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        """``nn.Module._apply`` that keeps the dtype of scales and the layout in step."""
        probe = fn(torch.empty(0, dtype=self._float_dtype, device=self.packed_on))
        float_dtype = probe.dtype
        name = _float_name(float_dtype)
        scales, device = self._buffers["weight_scales"], self.weight.device
        if self.packed_on is not None:
            self.packed_on = probe.device
            fn = self._but_for_arrays(fn, float_dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self._buffers["weight_scales"]
        if scales is not None and moved is not None and moved.dtype != scales.dtype:
            self._buffers["weight_scales"] = scales.to(moved.device)
        if self.weight.device != device:
            cuda_packed.forget(self.weight_values)
        layout = self._layout
        self._set_layout(layout if layout.quantized else replace(layout, dtype=name), float_dtype)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *found: Any
    ) -> None:
        """All arrays or none: those of another mask would leave values and places that do not fit."""
        given = state_dict.get(f"{prefix}weight_values")
        if given is None and f"{prefix}weight" in state_dict:
            found[-1].append(
                f"{prefix}weight: got a dense weight, wanted the arrays of a compressed one; load the "
                "state before sparsify_, or after tamis.dense_(model)."
            )
            return
        if given is not None and given.shape != self.weight_values.shape:
            error_msgs: list[str] = found[-1]
            error_msgs.append(
                f"{prefix}weight_values: got {given.numel()} stored values, wanted "
                f"{self.weight_values.numel()}: the state is of another mask; load it into a model "
                "that was pruned alike, or a saved folder by tamis.load."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *found)

    def _but_for_arrays(
        self, fn: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> Callable[[Tensor], Tensor]:
        """``fn`` that gives floating values another dtype and leaves all arrays where they are."""
        values, arrays = self.weight_values, {id(a) for a in (self.weight_values, *self.rest())}

        def apply(tensor: Tensor) -> Tensor:
            if id(tensor) not in arrays:
                return fn(tensor)
            converts = tensor is values and tensor.is_floating_point()
            return tensor.to(dtype) if converts else tensor

        return apply


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, tensor.requires_grad)


def _float_name(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAME:
        raise TamisTypeError(
            f"SparseLinear: dtype: got {dtype}, wanted torch.float32, float16 or bfloat16; this layer was "
            "not changed, but a model's layers before it: call its .to with one of these."
        )
    return DTYPE_NAME[dtype]
