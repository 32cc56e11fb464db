"""sparse_mlp: a gated MLP that reads up and down only for the neurons whose activation is not small.

``torch.ops.tamis.sparse_mlp`` has a fake version, so that compile and export see one operator; it
has no gradient: train with ``masked_mlp`` instead, which is also the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import cuda_activation
from tamis.ops.handle import core_errors
from tamis.ops.sparse_input import check_operand, check_tokens
from tamis.ops.spmm import ACTIVATIONS

__all__ = ["masked_mlp", "sparse_mlp"]

_CODES = {name: code for code, name in enumerate(ACTIVATIONS, start=1)}
_NAMES = {code: name for name, code in _CODES.items()}


def masked_mlp(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, activation: str = "silu"
) -> Tensor:
    """``sparse_mlp`` [..., d] by torch: small activations become zero, then dense products. Differentiable."""
    a = ACTIVATIONS[activation](functional.linear(x, gate))
    kept = torch.where(a.abs() < threshold, a.new_zeros(()), a)
    return functional.linear(kept * functional.linear(x, up), down)


def sparse_mlp(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, activation: str = "silu"
) -> Tensor:
    """Output y [..., d] = (z * (x @ up.T)) @ down.T, z = f(x @ gate.T) where at least threshold.

    Reads gate whole, up and down for the neurons that some of up to 4 tokens needs (8 on CUDA), so it
    is for decoding (CATS, arXiv:2404.08763, sec. 4). Activations stay float32 until y; which of them
    count is decided in float32. On CUDA float16 and bfloat16 have kernels where k and d are multiples
    of 8; they keep 16 bits of a product of activations in bfloat16, 22 in float16, and the rest is
    ``masked_mlp``.

    Args:
        x: [..., k] float32, float16 or bfloat16 on the CPU or a CUDA device.
        gate: [n, k] of the same dtype, as are all weights.
        up: [n, k].
        down: [d, n], its transpose contiguous: a neuron is one run of memory.
        threshold: [n] float32, at least 0, of |f(x @ gate.T)|; 0 keeps everything.
        activation: f: "silu", "relu", "gelu" or "gelu_tanh".

    Raises:
        TamisTypeError: A dtype or device has no kernel, or dtypes differ.
        TamisValueError: Shapes disagree, down lies row by row, or no such activation.
    """
    if activation not in _CODES:
        raise TamisValueError(
            f"sparse_mlp: activation: got {activation!r}, wanted {', '.join(map(repr, _CODES))}."
        )
    y: Tensor = torch.ops.tamis.sparse_mlp(x, gate, up, down, threshold, _CODES[activation])
    return y


_lib: Any = torch.library.Library("tamis", "FRAGMENT")  # type: ignore[no-untyped-call]
_lib.define(
    "sparse_mlp(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor threshold, int activation) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _check(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor
) -> tuple[Tensor, int, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Tokens [m, k], the code of their dtype, weights with down [n, d], threshold, all contiguous."""
    op = "sparse_mlp"
    n, k = gate.shape
    tokens, code = check_tokens(op, x, k)
    gate = check_operand(op, "gate", gate, (n, k), x)
    up = check_operand(op, "up", up, (n, k), x)
    if not down.t().is_contiguous():
        raise TamisValueError(
            "sparse_mlp: down: got rows that are contiguous, wanted columns; store it as "
            "down.t().contiguous().t()."
        )
    rows = check_operand(op, "down", down.t(), (n, down.shape[0]), x)
    bound = check_operand(op, "threshold", threshold, (n,), x.new_empty(0).float())
    return tokens, code, (gate, up, rows), bound


def _cpu(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, activation: int
) -> Tensor:
    tokens, code, (gate, up, rows), bound = _check(x, gate, up, down, threshold)
    (n, k), d = gate.shape, down.shape[0]
    y = x.new_empty(tokens.shape[0], d)
    with core_errors():
        _C.sparse_mlp(
            code,
            (tokens.shape[0], k, n, d),
            tokens.data_ptr(),
            k,
            gate.data_ptr(),
            up.data_ptr(),
            rows.data_ptr(),
            bound.data_ptr(),
            activation,
            y.data_ptr(),
            d,
        )
    return y.view(*x.shape[:-1], d)


def _cuda(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, activation: int
) -> Tensor:
    tokens, code, weights, bound = _check(x, gate, up, down, threshold)
    (n, k), d = gate.shape, down.shape[0]
    if not cuda_activation.takes(x, k, d) or n == 0:
        return masked_mlp(x, gate, up, down, bound, _NAMES[activation])
    y = x.new_empty(tokens.shape[0], d)
    cuda_activation.sparse_mlp(code, tokens, weights, bound, activation, y)
    return y.view(*x.shape[:-1], d)


def _fake(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, activation: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], down.shape[0]))


_lib.impl("sparse_mlp", _cpu, "CPU")
_lib.impl("sparse_mlp", _cuda, "CUDA")
torch.library.register_fake("tamis::sparse_mlp", _fake, lib=_lib)
