"""Linear layers as dense ones, the formats that hold them exactly, and putting them in place."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis import stored, transposed
from tamis.errors import TamisTypeError
from tamis.layout import Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.ops.conv2d import NO_BOUNDS
from tamis.ops.tensors import DTYPE_NAME
from tamis.policy import select
from tamis.recipe import KEEP, Pattern

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = ((2, 4), (1, 4), (4, 8), (2, 8), (1, 8))  # N:M looked for in a mask
BLOCKS = ((16, 16), (8, 8), (4, 4), (1, 16))  # r x c looked for in a mask
BLOCK_FILL = 0.9  # below this share of kept weights in kept blocks, blocks waste their bytes


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear, Conv1D of transformers and SparseLinear by name, in model order."""
    return {
        n: m
        for n, m in model.named_modules()
        if type(m) is SparseLinear or transposed.is_linear(m) or transposed.is_conv1d(m)
    }


def tied(model: nn.Module) -> set[nn.Module]:
    """Modules with a parameter that another module has too."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return {module for several in owners.values() if len(several) > 1 for module in several}


def mask_of(linear: nn.Linear) -> Tensor:
    """The mask [n, k] that pruning left on the layer, and wherever the weight is not zero.

    Both, as zeros that were kept stay in a format, and what was added since (an adapter) is no zero.
    """
    keep = getattr(linear, KEEP, None)
    nonzero = linear.weight.detach() != 0
    return keep.to(nonzero.device) | nonzero if isinstance(keep, torch.Tensor) else nonzero


def as_dense(layer: SparseLinear) -> nn.Module:
    """The sparse layer as nn.Linear or nn.Conv2d; its mask stays with it."""
    if not isinstance(layer, SparseConv2d):
        return as_linear(layer)
    conv = layer.to_conv()
    keep = torch.as_tensor(layer.matrix.keep()).reshape(conv.weight.shape)
    conv.register_buffer(KEEP, keep, persistent=False)
    return conv if layer.bounds == NO_BOUNDS else nn.Sequential(conv, nn.Hardtanh(*layer.bounds))


def as_linear(layer: nn.Module) -> nn.Linear:
    """The layer as nn.Linear; its mask stays with it.

    Raises:
        TamisTypeError: It is no linear layer.
    """
    if isinstance(layer, SparseLinear):
        linear = layer.to_linear()
        keep = torch.as_tensor(layer.matrix.keep()).to(linear.weight.device)
        linear.register_buffer(KEEP, keep, persistent=False)
        return linear.train(layer.training)
    if transposed.is_conv1d(layer):
        return transposed.as_linear(layer)
    if not isinstance(layer, nn.Linear):
        raise TamisTypeError(
            f"as_linear: layer: got {type(layer).__name__}, wanted nn.Linear or SparseLinear."
        )
    return layer


def format_of(layer: nn.Module) -> str:
    """Name of the format, or "dense"."""
    return layer.layout.format if isinstance(layer, SparseLinear) else "dense"


def dense_bytes(layer: nn.Module) -> int:
    """Bytes that the weight takes densely."""
    if isinstance(layer, SparseLinear):
        return layer.layout.dense_nbytes
    return as_linear(layer).weight.numel() * as_linear(layer).weight.element_size()


def nbytes_of(layer: nn.Module) -> int:
    """Bytes of the weight as it is stored."""
    return layer.nbytes if isinstance(layer, SparseLinear) else dense_bytes(layer)


def device_of(layer: nn.Module) -> int | None:
    """Number of the CUDA device that a layer's weight lies on; None on others."""
    weight: Any = layer.weight
    return (weight.device.index or 0) if weight.is_cuda else None


def holding_layouts(
    weight: Tensor, keep: Tensor, pattern: Pattern | None = None
) -> dict[str, tuple[Layout, int]]:
    """(Layout, bytes) by format, of the formats that hold weight [n, k] under keep exactly.

    With a pattern (the mask is known to follow it) nothing is looked for in the mask. Empty if no
    format stores the weight's dtype.
    """
    held = counted_layouts(weight, keep, pattern)
    return {name: (layout, layout.nbytes(count)) for name, (layout, count) in held.items()}


def counted_layouts(
    weight: Tensor, keep: Tensor, pattern: Pattern | None = None
) -> dict[str, tuple[Layout, int]]:
    """The same with the values that each stores instead of bytes."""
    dtype = DTYPE_NAME.get(weight.dtype)
    if dtype is None:
        return {}
    n, k = weight.shape
    nnz = int(keep.sum())
    found = {name: (Layout(name, n, k, dtype), nnz) for name in ("bitmap", "csr", "csr8")}
    if pattern is None:
        pattern = _pattern_in(keep, nnz)
    if pattern.kind == "nm":
        found["nm"] = (Layout("nm", n, k, dtype, keep=pattern.keep, of=pattern.of), nnz)
    if pattern.kind == "block":
        stored = int(_block_counts(keep, pattern.rows, pattern.cols).count_nonzero())
        stored *= pattern.rows * pattern.cols
        layout = Layout("block", n, k, dtype, block=(pattern.rows, pattern.cols))
        found["block"] = (layout, stored)
    return found


def _pattern_in(keep: Tensor, nnz: int) -> Pattern:
    """The first known pattern that the mask follows exactly."""
    n, k = keep.shape
    for kept, of in GROUPS:
        exact = k % of == 0 and nnz == n * k // of * kept
        if exact and bool((keep.reshape(-1, of).sum(1) == kept).all()):
            return Pattern("nm", keep=kept, of=of)
    for rows, cols in BLOCKS:
        if n % rows == 0 and k % cols == 0:
            stored = int(_block_counts(keep, rows, cols).count_nonzero()) * rows * cols
            if stored < n * k and nnz >= BLOCK_FILL * stored:
                return Pattern("block", rows=rows, cols=cols)
    return Pattern()


def _block_counts(keep: Tensor, rows: int, cols: int) -> Tensor:
    return select.block_scores(keep.to(torch.int32), Pattern("block", rows=rows, cols=cols))


def compressed(linear: nn.Linear, weight: Tensor, keep: Tensor, layout: Layout) -> SparseLinear:
    """SparseLinear with `weight` [n, k] under `keep` in place of the linear's own, and its bias."""
    source = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    source.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    source.bias = linear.bias
    module = SparseLinear.from_linear(
        source,
        keep=keep,
        format=layout.format,
        n_m=(layout.keep, layout.of) if layout.format == "nm" else None,
        block=layout.block if layout.format == "block" else None,
        dtype=layout.dtype if layout.quantized else None,
        group_size=layout.group_size,
    )
    return module.train(linear.training)


# What a user attached to a layer runs on with the one that takes its place.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Gives `new` the hooks of `old`, whose handles go on removing them."""
    vars(new).update({name: getattr(old, name) for name in _HOOKS})


def take_hooks(old: nn.Module, new: nn.Module) -> None:
    """Gives `new` the hooks of `old` but for those that make its weight, as torch.nn.utils.prune's do.

    The new one holds what they made. A hook of accelerate, which replaces a module's forward, goes along.
    """
    if isinstance(old, SparseLinear) or "weight" in old._parameters:
        share_hooks(old, new)
    if "_hf_hook" in vars(old):
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, vars(old)["_hf_hook"])


def refresh_weight(layer: nn.Module) -> None:
    """Has torch.nn.utils' hooks make the layer's weight now: loading a state leaves the one before."""
    if "weight" in layer._parameters:
        return
    training, layer.training = layer.training, False  # spectral norm's would else iterate
    for hook in list(layer._forward_pre_hooks.values()):
        if type(hook).__module__.startswith("torch.nn.utils."):
            hook(layer, ())
    layer.training = training


def holding_weight(layer: Any) -> nn.Module:
    """A copy of a layer whose weight a hook makes, with that weight as its own parameter."""
    twin: Any = copy.copy(layer)
    del twin.__dict__["weight"]
    trained = any(p.requires_grad for p in layer.parameters())
    twin._parameters = {"weight": nn.Parameter(layer.weight.detach().clone(), trained)}
    twin._parameters["bias"] = layer._parameters.get("bias")
    twin._buffers, twin._forward_pre_hooks = {}, OrderedDict()
    return twin  # type: ignore[no-any-return]


def places_of(
    model: nn.Module, modules: Iterable[nn.Module]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Parent, key and module of each place where the model holds one of these."""
    wanted = {id(module) for module in modules}
    return [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is not None and id(child) in wanted
    ]


@contextmanager
def standing_in(
    model: nn.Module, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Linear]
) -> Iterator[None]:
    """The linears in the Conv1Ds' places, so that what calibration hooks and replaces is called."""
    pairs = [(layer, linears[n]) for n, layer in layers.items() if transposed.is_conv1d(layer)]
    instead = {id(layer): linear for layer, linear in pairs}
    places = places_of(model, [layer for layer, _ in pairs])
    try:
        for parent, key, child in places:
            parent._modules[key] = instead[id(child)]
        yield
    finally:
        for parent, key, child in places:
            parent._modules[key] = child


def swap(model: nn.Module, layers: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
    """Replaces (old, new) wherever the model holds old; all of them or, on an exception, none."""
    pairs = [(old, transposed.in_place_of(old, new)) for old, new in layers.values()]
    new_of = {id(old): new for old, new in pairs}
    for name, (old, new) in zip(layers, pairs, strict=True):
        take_hooks(old, new)
        if isinstance(new, SparseLinear):
            new.place = name
    places = places_of(model, [old for old, _ in pairs])
    stored.follow(model)  # its import takes a second; from here on little can go wrong
    try:
        for parent, key, child in places:
            setattr(parent, key, new_of[id(child)])
        stored.follow(model)
    except BaseException:
        for parent, key, child in places:
            parent._modules[key] = child
        stored.follow(model)
        raise
