"""What a report says of one layer: format, bytes, kernel, predicted time and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from torch import nn

from tamis import _C
from tamis.activation import InputSparseLinear, SparseMLP
from tamis.formats import as_linear, device_of, mask_of
from tamis.layout import Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.ops import cost, cuda_choice, cuda_packed, cuda_spmm, machine
from tamis.ops.tensors import DTYPE_NAME
from tamis.report import LayerReport

if TYPE_CHECKING:
    from torch import Tensor


def describe(
    name: str,
    layer: nn.Module,
    *,
    reason: str = "",
    sparsity: float | None = None,
    tokens: int = 1,
) -> LayerReport:
    """The report's row of one layer, without measured times; predicted for rows of x."""
    if isinstance(layer, SparseLinear):
        matrix, layout, device = layer.matrix, layer.layout, device_of(layer)
        packed = 0
        if layer.packed_on is not None and device is not None:
            packed = cuda_packed.nbytes(layer.weight_values, device)
        return LayerReport(
            name=name,
            shape=(layout.rows, layout.cols),
            sparsity=1 - matrix.nnz / (layout.rows * layout.cols),
            format=layout.label,
            nbytes=packed or matrix.nbytes,
            dense_nbytes=layout.dense_nbytes,
            kernel=_kernel(layer, tokens),
            predicted_ms=None
            if isinstance(layer, SparseConv2d)
            else _ms(
                cost.sparse_ns(
                    layout, matrix.nnz, tokens, device=device, stored=layer.packed_on is None
                )
            ),
            reason=reason,
        )
    linear = as_linear(layer)
    weight = linear.weight
    if sparsity is None:
        sparsity = 1 - int(mask_of(linear).sum()) / weight.numel()
    nbytes = weight.numel() * weight.element_size()
    dtype = DTYPE_NAME.get(weight.dtype, str(weight.dtype).removeprefix("torch."))
    return LayerReport(
        name=name,
        shape=(linear.out_features, linear.in_features),
        sparsity=sparsity,
        format=f"dense {dtype}",
        nbytes=nbytes,
        dense_nbytes=nbytes,
        kernel="torch",
        predicted_ms=_dense_ms(linear, tokens),
        reason=reason,
    )


def row_of(
    name: str,
    layer: nn.Module,
    costs: Mapping[str, float],
    best: str,
    objective: str,
    tokens: int,
) -> LayerReport:
    """The row of a layer that was given ``best`` among candidates of these costs."""
    unit = "ms" if objective == "latency" else "bytes"
    others = ", ".join(f"{n} {c:.3g}" for n, c in costs.items() if n != best)
    better = "fastest" if objective == "latency" else "smallest"
    reason = f"{better}: {best} {costs[best]:.3g} {unit} against {others}"
    if best == "dense":
        reason = f"no format is {better[:-3] + 'er'}: dense {costs[best]:.3g} {unit}, {others}"
    row = describe(name, layer, reason=reason, tokens=tokens)
    return timed(row, costs[best], costs["dense"]) if objective == "latency" else row


def timed(row: LayerReport, own_ms: float, dense_ms: float) -> LayerReport:
    """The row with its measured times, and the share of memory's bandwidth that they reach."""
    limit = _bandwidth()
    reached = row.nbytes / (own_ms * 1e6) / limit if limit else None
    return replace(row, measured_ms=own_ms, dense_ms=dense_ms, memory_limit=reached)


def leaving_out(model: nn.Module) -> dict[str, LayerReport]:
    """Rows of the linears whose small activations are left out, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, InputSparseLinear):
            reason = "reads the columns of inputs that count, up to 4 tokens at a time"
            found[name] = _by_column(name, module.weight, "sparse_input", reason)
        elif isinstance(module, SparseMLP):
            counts = "reads what neurons that count meet, up to 4 tokens at a time"
            reasons = ("read whole: it says which neurons count", counts, counts)
            for part, weight, reason in zip(module.names, module.weights(), reasons, strict=True):
                found[f"{name}.{part}"] = _by_column(f"{name}.{part}", weight, "sparse_mlp", reason)
    return found


def _by_column(name: str, weight: Tensor, op: str, reason: str) -> LayerReport:
    dtype = DTYPE_NAME.get(weight.dtype, "")
    names = [
        row["name"]
        for row in _C.activation_kernels()
        if row["op"] == op and row["w_dtype"] == dtype and row["runs_here"]
    ]
    nbytes = weight.numel() * weight.element_size()
    shape = (weight.shape[0], weight.shape[1])
    kernel = names[0] if names else "torch"
    return LayerReport(
        name, shape, 0.0, f"dense {dtype}", nbytes, nbytes, kernel=kernel, reason=reason
    )


def no_choice(layer: nn.Module) -> str:
    """Reason of a layer that was not chosen among others."""
    if isinstance(layer, SparseLinear):
        device = None if isinstance(layer, SparseConv2d) else device_of(layer)
        whole = layer.packed_on is None or device is None
        pays = "" if device is None else tokens_of(layer.layout, layer.nnz, device, stored=whole)
        held = "stored" if whole else f"packed on {layer.packed_on}, in host memory"
        return f"{held} as {layer.layout.label}{pays}"
    zeros = 1 - float(mask_of(as_linear(layer)).float().mean())
    return f"stored dense with {zeros:.1%} zeros" if zeros else "dense: no zeros to leave out"


def _kernel(layer: SparseLinear, tokens: int) -> str:
    layout = layer.layout
    shape = (tokens, layout.rows, layout.cols, layer.nnz)
    x_dtype = DTYPE_NAME[layer.float_dtype]
    active = str(_C.isa()["active"])
    if (device := device_of(layer)) is not None:
        values, stored = layer.weight_values, layer.packed_on is None
        found = cuda_spmm.kernel(layout, values, layer.nnz, tokens, device, stored=stored)
        return found or "torch"
    if isinstance(layer, SparseConv2d):
        return str(_C.choose_conv2d(layout.format, active)) if layout.dtype == "f32" else "torch"
    return str(_C.choose(layout.format, layout.dtype, x_dtype, *shape, active))


def tokens_of(layout: Layout, nnz: int, device: int, *, stored: bool = True) -> str:
    """What a report adds on a CUDA device: up to how many tokens it pays."""
    most = cuda_choice.most_tokens(layout, nnz, device, stored=stored)
    if most is None:
        return ""
    found = f"no slower than dense up to {most} tokens" if most else "slower"
    guess = (
        ", estimated from another device's times"
        if cuda_choice.estimated(layout, nnz, device)
        else ""
    )
    return f"; on CUDA {found}{guess}"


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns * 1e-6


def _dense_ms(linear: nn.Linear, tokens: int) -> float | None:
    """What torch is expected to take; None for dtypes that no figure is about."""
    dtype = DTYPE_NAME.get(linear.weight.dtype)
    n, k = linear.weight.shape
    return _ms(cost.dense_ns(dtype, n, k, tokens, device=device_of(linear))) if dtype else None


def _bandwidth() -> float:
    """GB/s that a plain read reaches with the threads in use: measured before, else now."""
    figures = _C.machine()
    if machine.load() and _C.num_threads() in (1, figures["threads"]):
        return figures["read_one" if _C.num_threads() == 1 else "read_all"]
    return _measured_bandwidth(_C.num_threads())


@cache
def _measured_bandwidth(threads: int) -> float:
    return float(_C.stream_read(threads, machine.cold_bytes()))
