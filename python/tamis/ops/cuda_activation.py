"""Products that leave activations out, on CUDA devices: which calls have a kernel, and the calls.

No call waits for the device or reads from it, so all of them can be captured in a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tamis import _C
from tamis.ops import cuda
from tamis.ops.cuda_memory import with_workspace

TOKENS = 8
"""Tokens that share one pass over the weights."""

DECODED = 1
"""Tokens for which layers leave weights out: with four the union of what they need is nearly all, and
torch's dense products are as fast or faster (bench/results/gpu.md)."""

_LARGEST = 1 << 15  # inputs of one token that shared memory holds


def takes(x: Tensor, *widths: int) -> bool:
    """Whether kernels take x and weights whose rows have these lengths."""
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and all(0 < width <= _LARGEST and width % 8 == 0 for width in widths)
        and not cuda.why_off()
    )


def aligned(w: Tensor) -> Tensor:
    """`w`, or a copy of it where it does not start on 16 bytes."""
    return w if w.data_ptr() % 16 == 0 else w.clone()


def sparse_input(
    code: int, x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, y: Tensor
) -> None:
    """Y [m, n] of x [m, k]; w [k, n]; all contiguous and checked."""
    device = x.device.index or 0
    (m, k), n = x.shape, w.shape[1]
    w = aligned(w)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_sparse_input(
            device,
            stream,
            code,
            (m, n, k),
            x.data_ptr(),
            k,
            w.data_ptr(),
            threshold.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            n,
            pointer,
            nbytes,
        )

    with_workspace(device, run)


def sparse_mlp(
    code: int,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    threshold: Tensor,
    activation: int,
    y: Tensor,
) -> None:
    """Y [m, d] of x [m, k]; gate and up [n, k], down [n, d]; all contiguous and checked."""
    device = x.device.index or 0
    gate, up, down = (aligned(w) for w in weights)
    (m, k), (n, d) = x.shape, down.shape

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_sparse_mlp(
            device,
            stream,
            code,
            (m, k, n, d),
            x.data_ptr(),
            k,
            (gate.data_ptr(), up.data_ptr(), down.data_ptr()),
            threshold.data_ptr(),
            activation,
            y.data_ptr(),
            d,
            pointer,
            nbytes,
        )

    with_workspace(device, run)
