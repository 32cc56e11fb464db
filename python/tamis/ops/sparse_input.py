"""sparse_input: y[m, n] = sum_k x[m, k] * w[n, k] + bias[n] over the inputs that are not small.

``torch.ops.tamis.sparse_input`` has a fake version, so that compile and export see one operator; it
has no gradient: train with ``masked_input`` instead, which is also the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops import cuda_activation
from tamis.ops.handle import CODE, core_errors
from tamis.ops.tensors import DTYPE_NAME

__all__ = ["TOKENS", "check_operand", "masked_input", "sparse_input"]

TOKENS: int = _C.sparse_activation_tokens
"""Tokens that share one pass over the weights; for more the kernels pass again."""


def masked_input(x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None = None) -> Tensor:
    """``sparse_input`` [..., n] by torch: small inputs become zero, then a dense product. Differentiable."""
    kept = torch.where(x.abs() < threshold, x.new_zeros(()), x)
    return functional.linear(kept, w, bias)


def sparse_input(x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product y [..., n] of the inputs with |x[k]| >= threshold[k], in x's dtype.

    Reads only the columns of w that some of up to 4 tokens needs (8 on CUDA), so it is for decoding.
    Which inputs count is decided in float32. Weights are finite: one that multiplies a dropped input
    of another token as infinity makes that token NaN. On CUDA float16 and bfloat16 have kernels where
    n is a multiple of 8; the rest is ``masked_input``.

    Args:
        x: [..., k] float32, float16 or bfloat16 on the CPU or a CUDA device.
        w: [n, k] of the same dtype, its transpose contiguous: a column is one run of memory.
        threshold: [k] float32, at least 0; 0 keeps everything.
        bias: [n] of the same dtype.

    Raises:
        TamisTypeError: A dtype or device has no kernel, or dtypes differ.
        TamisValueError: Shapes disagree, or w lies row by row.
    """
    y: Tensor = torch.ops.tamis.sparse_input(x, w, threshold, bias)
    return y


def check_operand(op: str, name: str, t: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`t`, contiguous.

    Raises:
        TamisTypeError: Another dtype or device than `like`.
        TamisValueError: Another shape.
    """
    if t.dtype != like.dtype or t.device != like.device:
        raise TamisTypeError(
            f"{op}: {name}: got {t.dtype} on {t.device}, wanted {like.dtype} on {like.device}; "
            "convert it."
        )
    if tuple(t.shape) != shape:
        raise TamisValueError(f"{op}: {name}: got shape {list(t.shape)}, wanted {list(shape)}.")
    return t.contiguous()


def check_tokens(op: str, x: Tensor, k: int) -> tuple[Tensor, int]:
    """X as [m, k] with contiguous rows, and the core's code of its dtype.

    Raises:
        TamisTypeError: A dtype or device without kernel.
        TamisValueError: The last extent is not k.
    """
    if x.dtype not in DTYPE_NAME or x.dtype == torch.int8 or not (x.is_cpu or x.is_cuda):
        raise TamisTypeError(
            f"{op}: x: got {x.dtype} on {x.device}, wanted float32, float16 or bfloat16 on cpu or "
            "cuda; use the masked dense form elsewhere."
        )
    if x.dim() == 0 or x.shape[-1] != k:
        raise TamisValueError(f"{op}: x: got shape {list(x.shape)}, wanted [..., {k}].")
    return x.reshape(-1, k).contiguous(), CODE[DTYPE_NAME[x.dtype]]


_lib: Any = torch.library.Library("tamis", "FRAGMENT")  # type: ignore[no-untyped-call]
_lib.define(
    "sparse_input(Tensor x, Tensor w, Tensor threshold, Tensor? bias) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _check(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """Tokens [m, k], the code of their dtype, threshold and bias, all contiguous."""
    n, k = w.shape
    tokens, code = check_tokens("sparse_input", x, k)
    if w.dtype != x.dtype or w.device != x.device:
        raise TamisTypeError(
            f"sparse_input: w: got {w.dtype} on {w.device}, wanted {x.dtype} on {x.device}, that of "
            "x; convert one of them."
        )
    if not w.t().is_contiguous():
        raise TamisValueError(
            "sparse_input: w: got rows that are contiguous, wanted columns; store it as "
            "w.t().contiguous().t()."
        )
    bound = check_operand("sparse_input", "threshold", threshold, (k,), x.new_empty(0).float())
    shift = None if bias is None else check_operand("sparse_input", "bias", bias, (n,), x)
    return tokens, code, bound, shift


def _cpu(x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None) -> Tensor:
    tokens, code, bound, shift = _check(x, w, threshold, bias)
    n, k = w.shape
    y = x.new_empty(tokens.shape[0], n)
    with core_errors():
        _C.sparse_input(
            code,
            (tokens.shape[0], n, k),
            tokens.data_ptr(),
            k,
            w.data_ptr(),
            bound.data_ptr(),
            0 if shift is None else shift.data_ptr(),
            y.data_ptr(),
            n,
        )
    return y.view(*x.shape[:-1], n)


def _cuda(x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None) -> Tensor:
    tokens, code, bound, shift = _check(x, w, threshold, bias)
    n, k = w.shape
    if not cuda_activation.takes(x, n) or k == 0:
        return masked_input(x, w, bound, shift)
    y = x.new_empty(tokens.shape[0], n)
    cuda_activation.sparse_input(code, tokens, w.t(), bound, shift, y)
    return y.view(*x.shape[:-1], n)


def _fake(x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


_lib.impl("sparse_input", _cpu, "CPU")
_lib.impl("sparse_input", _cuda, "CUDA")
torch.library.register_fake("tamis::sparse_input", _fake, lib=_lib)
