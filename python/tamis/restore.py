"""Fills a module that the caller built from checked files, all of it or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tamis import stored
from tamis.checkpoint import Checkpoint
from tamis.convolution import as_matrix
from tamis.errors import TamisValueError
from tamis.experts import restack, unstack
from tamis.formats import take_hooks
from tamis.layout import Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.nn.conv import window_of
from tamis.ops.conv2d import Window
from tamis.transposed import in_place_of, is_conv1d


def load_module(
    model: nn.Module, checkpoint: Checkpoint, source: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Puts the stored tensors into ``model``, in place; it is unchanged if anything is wrong.

    Args:
        model: The module; its linear layers may be on the meta device.
        checkpoint: The opened files.
        source: The JSON object that holds the layouts ("modules") and tied names ("aliases").
        dtype: Element type of floating-point tensors; None keeps the stored one.

    Raises:
        TamisFileError: A tensor is damaged.
        TamisValueError: The files are of another model.
    """
    layouts: dict[str, Layout] = {}
    if "modules" in source:
        stored.check_version(source, "modules", checkpoint.caller)
        layouts = stored.layouts_from_json(source["modules"], "modules", checkpoint.caller)
    origin = unstack(model, layouts)
    try:
        sparse = {
            name: _sparse(model, checkpoint, name, lay, dtype) for name, lay in layouts.items()
        }
        aliases = source.get("aliases", {})
        if not isinstance(aliases, dict):
            raise checkpoint.error(
                "aliases", type(aliases).__name__, "names by tied name",
                "the file is damaged, copy or save it again.",
            )  # fmt: skip
        tensors = _dense(model, checkpoint, set(layouts), aliases, dtype)
        for name, module in sparse.items():
            take_hooks(model.get_submodule(name), module)
            in_place_of(model.get_submodule(name), module)
            model.set_submodule(name, module)
        _assign(model, tensors)

    finally:
        restack(model, origin)


def _sparse(
    model: nn.Module, checkpoint: Checkpoint, name: str, layout: Layout, dtype: torch.dtype | None
) -> SparseLinear:
    linear, window = _place(model, name, checkpoint.caller)
    want = f"a linear layer [{layout.rows}, {layout.cols}]"
    if not isinstance(linear, nn.Linear | SparseLinear):
        got = "none" if linear is None else type(linear).__name__
        raise _mismatch(name, got, want)
    if (linear.out_features, linear.in_features) != (layout.rows, layout.cols):
        raise _mismatch(name, f"[{linear.out_features}, {linear.in_features}]", want)
    matrix = stored.read_matrix(checkpoint, name, layout)
    made = SparseLinear(
        layout, matrix.nnz, linear.bias is not None, "meta",
        (dtype or linear.weight.dtype) if layout.quantized else dtype,
    )  # fmt: skip
    for array, value in matrix.arrays.items():
        value = value if array == "scales" else _cast(value, dtype)
        if isinstance(getattr(made, f"weight_{array}"), nn.Parameter):
            value = nn.Parameter(value, linear.weight.requires_grad)
        setattr(made, f"weight_{array}", value)
    if linear.bias is not None:
        bias = _cast(_stored(checkpoint, f"{name}.bias", linear.bias), dtype)
        made.bias = nn.Parameter(bias, linear.bias.requires_grad)
    if window is not None:
        made = SparseConv2d.from_layer(made, window)
    return made.train(linear.training)


def _place(model: nn.Module, name: str, caller: str) -> tuple[nn.Module | None, Window | None]:
    """The layer of that name; a convolution as the matrix of its weight, with its window."""
    layer = dict(model.named_modules()).get(name)
    if isinstance(layer, nn.Conv2d):
        return as_matrix(layer), window_of(layer, caller)
    if layer is not None and is_conv1d(layer):
        return as_matrix(layer), None
    return layer, layer.window if isinstance(layer, SparseConv2d) else None


def _dense(
    model: nn.Module,
    checkpoint: Checkpoint,
    sparse: set[str],
    aliases: dict[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Every other tensor of the state_dict, by name, once its shape has been checked."""
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name.rpartition(".")[0] not in sparse
    }
    known = {id(value): name for name, value in state.items() if name in checkpoint}
    tensors = {}
    for name, value in state.items():
        alias = aliases.get(name)
        source = next(
            (
                n
                for n in (name, alias, known.get(id(value)))
                if isinstance(n, str) and n in checkpoint
            ),
            name,
        )
        tensors[name] = _cast(_stored(checkpoint, source, value), dtype)
    own = {f"{name}.weight_{a}" for name in sparse for a in ("values", *stored.COMPANIONS)}
    extra = checkpoint.entries.keys() - state.keys() - own - {f"{name}.bias" for name in sparse}
    if extra:
        raise _mismatch(min(extra), "no such tensor", "a place for each stored one")
    return tensors


def _stored(checkpoint: Checkpoint, name: str, like: torch.Tensor) -> torch.Tensor:
    entry = checkpoint.entries.get(name)
    if entry is None:
        raise checkpoint.error(
            name, "no such tensor in the files", f"one of shape {list(like.shape)}",
            "the files are incomplete or of another model.",
        )  # fmt: skip
    if entry.shape != tuple(like.shape):
        raise _mismatch(name, f"shape {list(like.shape)}", f"{list(entry.shape)} as in the file")
    return stored.tensor(checkpoint, name)


def _cast(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _assign(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replaces parameters and buffers; names that shared one parameter share the new one."""
    made: dict[int, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for name, value in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        old = getattr(module, leaf)
        if id(old) not in made:
            new = value
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(value, requires_grad=old.requires_grad)
            made[id(old)] = new
        setattr(module, leaf, made[id(old)])


def _mismatch(name: str, got: str, wanted: str) -> TamisValueError:
    return TamisValueError(
        f"load: model: got {got} at {name}, wanted {wanted}; pass the module that was saved."
    )
