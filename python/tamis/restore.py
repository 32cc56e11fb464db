"""Fills a module that the caller built from checked files, all of it or none of it."""

from __future__ import annotations

from collections.abc import Container, Mapping
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
        _put(model, sparse, _dense(model, checkpoint, set(layouts), aliases, dtype))
    finally:
        restack(model, origin)


def adopt(model: nn.Module, filled: nn.Module, caller: str) -> None:
    """Puts the modules and tensors of ``filled`` into ``model``, in place, all of them or none.

    Raises:
        TamisValueError: They are not of one architecture and size.
    """
    sparse = {n: m for n, m in filled.named_modules() if isinstance(m, SparseLinear)}
    origin = unstack(model, sparse)
    try:
        for name, module in sparse.items():
            linear, _ = _place(model, name, module.layout, caller)
            module.weight_values.requires_grad_(
                linear.weight.requires_grad and not module.layout.quantized
            )
        tensors, own = _others(filled, sparse), _others(model, sparse)
        if alone := min(tensors.keys() ^ own.keys(), default=None):
            got, wanted = ("a tensor" if alone in state else "none" for state in (own, tensors))
            raise _mismatch(alone, got, wanted)
        for name, value in own.items():
            _check_shape(name, value, tensors[name].shape)
        _put(model, sparse, {name: value.detach() for name, value in tensors.items()})
    finally:
        restack(model, origin)


def _put(
    model: nn.Module, sparse: Mapping[str, SparseLinear], tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, module in sparse.items():
        take_hooks(model.get_submodule(name), module)
        in_place_of(model.get_submodule(name), module)
        module.place = name
        model.set_submodule(name, module)
    _assign(model, tensors)
    stored.follow(model)


def _sparse(
    model: nn.Module, checkpoint: Checkpoint, name: str, layout: Layout, dtype: torch.dtype | None
) -> SparseLinear:
    linear, window = _place(model, name, layout, checkpoint.caller)
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


def _place(
    model: nn.Module, name: str, layout: Layout, caller: str
) -> tuple[nn.Linear | SparseLinear, Window | None]:
    """The layer of that name and size; a convolution as the matrix of its weight, with its window."""
    layer: nn.Module | None = dict(model.named_modules()).get(name)
    window = None
    if isinstance(layer, nn.Conv2d):
        window = window_of(layer, caller)
        layer = as_matrix(layer)
    elif layer is not None and is_conv1d(layer):
        layer = as_matrix(layer)
    elif isinstance(layer, SparseConv2d):
        window = layer.window
    want = f"a linear layer [{layout.rows}, {layout.cols}]"
    if not isinstance(layer, nn.Linear | SparseLinear):
        raise _mismatch(name, "none" if layer is None else type(layer).__name__, want)
    if (layer.out_features, layer.in_features) != (layout.rows, layout.cols):
        raise _mismatch(name, f"[{layer.out_features}, {layer.in_features}]", want)
    return layer, window


def _dense(
    model: nn.Module,
    checkpoint: Checkpoint,
    sparse: set[str],
    aliases: dict[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Every other tensor of the state_dict, by name, once its shape has been checked."""
    state = _others(model, sparse)
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


def _others(model: nn.Module, sparse: Container[str]) -> dict[str, torch.Tensor]:
    """The state_dict without what lies in these modules."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if name.rpartition(".")[0] not in sparse}


def _stored(checkpoint: Checkpoint, name: str, like: torch.Tensor) -> torch.Tensor:
    entry = checkpoint.entries.get(name)
    if entry is None:
        raise checkpoint.error(
            name, "no such tensor in the files", f"one of shape {list(like.shape)}",
            "the files are incomplete or of another model.",
        )  # fmt: skip
    _check_shape(name, like, entry.shape)
    return stored.tensor(checkpoint, name)


def _check_shape(name: str, like: torch.Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(like.shape) != tuple(wanted):
        raise _mismatch(name, f"shape {list(like.shape)}", f"{list(wanted)} as in the file")


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
