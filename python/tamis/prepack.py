"""Leaves compressed weights on a CUDA device once, in the form that its kernels read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.formats import linear_layers
from tamis.nn import SparseLinear
from tamis.ops import cuda, cuda_packed, cuda_spmm
from tamis.report import LayerReport, Report, host_facts
from tamis.report_rows import describe, no_choice

__all__ = ["keep_packed", "prepack_"]


def prepack_(
    model: nn.Module,
    *,
    tokens: int = 1,
    device: torch.device | str | None = None,
    keep_dense: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Leaves each compressed weight on a CUDA device in the form its kernels read alone, in place.

    Else a weight lies there as it is saved, and packed for the batches that come: with half of the
    weights kept 0.56 and 0.64 of dense. Afterwards it lies there packed, and as it is saved in host
    memory, wherever the model is moved; ``save``, ``state_dict`` and ``load_state_dict`` work as
    before, gradients need ``SparseLinear.keep_saved()`` of each layer. Prompts write out what is
    packed, which takes longer than from what is saved (bench/results/gpu.md). Calls of very
    different numbers of tokens may pack a second form, as ever.

    With ``keep_dense`` a layer lies there densely as well, if it loses to dense from some number of
    tokens on: 1.65 of dense memory with half of the weights kept, and prompts that take what
    dense ones do, until a weight is written (``load_state_dict``).

    32-bit bitmap and nm weights stay as they are without ``keep_dense``, as kernels read them so, and their
    row says it. Packing half of the weights kept takes some 20 s a billion weights on 16 cores.

    Args:
        model: With SparseLinear layers.
        tokens: Rows of the inputs to come, 1 for decoding one sequence.
        device: CUDA device to move the model to; its compressed weights come there packed alone, so
            more than what they end as is never needed. None: each layer's own.
        keep_dense: Whether long prompts and large batches shall have the weight densely.
        progress: Called with each layer's name.

    Returns:
        A row for each compressed layer, whose ``nbytes`` are those on the device.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: tokens is not positive, no CUDA kernel runs here, device is none of CUDA's,
            or no compressed layer lies on one.
    """
    layers, homes = _layers_and_homes(model, tokens, device)
    rows: list[LayerReport] = []
    for name, layer in layers.items():
        if progress:
            progress(name)
        home = homes[name]
        in_place = cuda_spmm.reads_in_place(layer.float_dtype, layer.layout)
        if home.type == "cuda" and (keep_dense or not in_place):
            _pack(layer, home, tokens, keep_dense)
        row = describe(name, layer, reason=no_choice(layer), tokens=tokens)
        if layer.packed_on is None:
            why = "no CUDA kernel takes" if home.type == "cuda" else f"it lies on {home}:"
            why = "kernels read" if home.type == "cuda" and in_place else why
            row = replace(row, reason=f"left as it is: {why} {layer.layout.label}")
        rows.append(row)
    if device is not None:
        model.to(device)
    facts: dict[str, float | int | str] = {
        "tokens": tokens,
        "layers_packed": sum(layer.packed_on is not None for layer in layers.values()),
        "device_bytes": sum(row.nbytes for row in rows),
        "dense_bytes": sum(row.dense_nbytes for row in rows),
        "host_bytes": sum(x.nbytes for x in layers.values() if x.packed_on is not None),
    }
    return Report("packed for CUDA", rows, facts, host_facts())


def keep_packed(old: nn.Module, new: nn.Module, tokens: int) -> None:
    """Leaves `new`, which takes the place of `old`, as ``prepack_`` left that; else does nothing."""
    if isinstance(old, SparseLinear) and isinstance(new, SparseLinear) and old.packed_on:
        also_dense = cuda_packed.keeps_dense(old.weight_values, old.packed_on)
        _pack(new, old.packed_on, tokens, also_dense)


def _layers_and_homes(
    model: nn.Module, tokens: int, device: torch.device | str | None
) -> tuple[dict[str, SparseLinear], dict[str, torch.device]]:
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"prepack_: model: got {type(model).__name__}, wanted a torch.nn.Module; load it first."
        )
    if not isinstance(tokens, int) or tokens < 1:
        raise TamisValueError(
            f"prepack_: tokens: got {tokens!r}, wanted at least 1; pass the rows of x to come."
        )
    if cuda.why_off():
        raise TamisValueError(
            f"prepack_: model: got no CUDA kernels ({cuda.why_off()}), wanted a device that runs them; "
            "on the CPU weights are multiplied as they are saved, so leave the call out."
        )
    to = None if device is None else torch.device(device)
    if to is not None and to.type != "cuda":
        raise TamisValueError(f"prepack_: device: got {to}, wanted a CUDA device such as 'cuda'.")
    if to is not None and to.index is None:
        to = torch.device("cuda", torch.cuda.current_device())
    layers = {n: x for n, x in linear_layers(model).items() if isinstance(x, SparseLinear)}
    homes = {name: to or layer.weight.device for name, layer in layers.items()}
    if not any(home.type == "cuda" for home in homes.values()):
        raise TamisValueError(
            "prepack_: model: got no compressed layer on a CUDA device, wanted one; call sparsify_ or "
            "load first, then pass device='cuda'."
        )
    return layers, homes


def _pack(layer: SparseLinear, home: torch.device, tokens: int, keep_dense: bool) -> None:
    """Leaves the layer packed, or as it was."""
    before, origin, packed = layer.packed_on, layer.weight_values.device, 0
    layer.keep_packed(home)
    try:
        packed = cuda_spmm.prepack(
            layer.layout,
            layer.weight_values,
            layer.rest(),
            layer.float_dtype,
            home,
            tokens,
            keep_dense=keep_dense,
        )
    finally:
        if not packed and before is None:
            layer.keep_saved()
            layer.to(origin)
