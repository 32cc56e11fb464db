"""FusedDecoder: a decoder layer that computes a new token in two calls of the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tamis.nn.linear import SparseLinear
from tamis.ops.decoder import Norm, Weight, inputs, outputs, weight_of

__all__ = ["FusedDecoder", "fused", "is_sparse", "unfused"]

_FIRST = ("q_proj", "k_proj", "v_proj")
_SECOND = ("gate_proj", "up_proj", "down_proj")
# Arguments of a layer that change nothing in a step that has no mask.
_IGNORED = {"position_ids", "use_cache", "cache_position"}
_MOST_HEAD_DIM = 256  # what the core's attention takes, in multiples of 16
_PLAIN = ("sdpa", "eager")  # what computes softmax attention and nothing else
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing
_count_modes = torch._C._len_torch_dispatch_stack
_has_global_hook: Callable[[], bool] = torch_module._has_any_global_hook


class FusedDecoder(nn.Module):
    """What ``fused`` puts before a decoder layer's own class; parameters and names stay as they are.

    One new token a sequence takes two calls of the core where nothing could tell the difference:
    CPU tensors, no gradients, no mask, a plain dynamic cache, SparseLinear throughout, nobody's hooks
    on the modules inside. Everything else runs the layer's own forward.
    Differs: silu(gate) * up is rounded once, not three times, if the dtype has 16 bits.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Output of the layer, as its own class computes it; arguments are that class's."""
        if not args and type(hidden_states) is Tensor:
            y = _step(self, hidden_states, kwargs)
            if y is not None:
                return y
        return super().forward(hidden_states, *args, **kwargs)

    def extra_repr(self) -> str:
        """Shows in print(model), where the class has its layer's own name."""
        return "new tokens in two calls"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles and copies by the layer's own class: this one is made at run time."""
        return _restored, (type(self).__bases__[1],), self.__dict__


def is_sparse(layer: nn.Module) -> bool:
    """Whether every linear of a decoder layer is a SparseLinear, which the two calls take."""
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    linears = [attention.get_submodule(name) for name in (*_FIRST, "o_proj")]
    linears += [mlp.get_submodule(name) for name in _SECOND]
    return all(type(linear) is SparseLinear for linear in linears)


def fused(layer: nn.Module) -> None:
    """Makes ``layer`` a FusedDecoder of its own class."""
    if not isinstance(layer, FusedDecoder):
        layer.__class__ = _class_of(type(layer))


def unfused(layer: nn.Module) -> None:
    """Takes ``fused`` back."""
    if isinstance(layer, FusedDecoder):
        layer.__class__ = type(layer).__bases__[1]


_classes: dict[type, type[nn.Module]] = {}


def _class_of(base: type) -> type[nn.Module]:
    if base not in _classes:
        # The name stays: families, and transformers, know layers by it.
        _classes[base] = type(base.__name__, (FusedDecoder, base), {"__module__": base.__module__})
    return _classes[base]


def _restored(base: type) -> nn.Module:
    made: nn.Module = nn.Module.__new__(_class_of(base))
    return made


def _step(layer: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    shape = x.shape
    if len(shape) != 3 or shape[1] != 1 or layer.training or _recorded(x):
        return None
    children: Any = layer._modules
    attention, mlp = children["self_attn"], children["mlp"]
    before, after = children["input_layernorm"], children["post_attention_layernorm"]
    if _is_watched(attention) or _is_watched(mlp) or _is_watched(before) or _is_watched(after):
        return None
    norms: tuple[Norm, Norm] = (
        (before._parameters["weight"], before.variance_epsilon),
        (after._parameters["weight"], after.variance_epsilon),
    )
    found = _arguments(attention, x, kwargs)
    if found is None:
        return None
    cache, turns = found
    m, dtype = shape[0], x.dtype
    first = _weights(attention, _FIRST, dtype, m)
    last = _weights(attention, ("o_proj",), dtype, m)
    gated = _weights(mlp, _SECOND, dtype, m)
    if not (first and last and gated) or any(n[0].dtype is not dtype for n in norms):
        return None
    x = x.contiguous()
    head_dim = attention.head_dim
    queries, keys, values = inputs(x, norms[0], first, turns, head_dim)  # type: ignore[arg-type]
    keys, values = cache.update(keys, values, attention.layer_idx)
    attended = queries, keys, values, attention.scaling
    return outputs(x, attended, norms[1], last + gated)  # type: ignore[arg-type]


def _recorded(x: Tensor) -> bool:
    """Whether something looks at, or keeps, what happens to x."""
    return (
        not x.is_cpu
        or _is_grad_enabled()
        or _is_compiling()
        or _is_tracing()
        or _count_modes() > 0
        or _has_global_hook()
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody hooked the module, or replaced its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _arguments(
    attention: Any, x: Tensor, kwargs: dict[str, Any]
) -> tuple[Any, tuple[Tensor, Tensor]] | None:
    """Cache and rotations of a step that the core can do; None of any other."""
    cache: Any = None
    turns: Any = None
    for name, value in kwargs.items():
        if name in ("cache", "past_key_values"):
            cache = value
        elif name == "position_embeddings":
            turns = value
        elif value is not None and name not in _IGNORED:
            return None
    if turns is None or not _is_plain(attention, cache, x):
        return None
    (cos, sin), d = turns, attention.head_dim
    if cos.dtype is not x.dtype or cos.shape[1:] != (1, d) or cos.shape[0] not in (1, x.shape[0]):
        return None
    return cache, (cos.contiguous(), sin.contiguous())


def _is_plain(attention: Any, cache: Any, x: Tensor) -> bool:
    """Whether the layer attends by softmax to all keys of a cache that holds them like x."""
    # A configuration looks every attribute up in a table of per-layer ones first: 5 us.
    if object.__getattribute__(attention.config, "_attn_implementation") not in _PLAIN:
        return False
    d, index = attention.head_dim, attention.layer_idx
    if d % 16 != 0 or d > _MOST_HEAD_DIM or type(cache).__name__ != "DynamicCache":
        return False
    if index >= len(cache.layers) or type(cache.layers[index]).__name__ != "DynamicLayer":
        return False
    keys = cache.layers[index].keys
    return keys is not None and keys.dtype is x.dtype and keys.is_cpu and keys.stride(-1) == 1


def _weights(
    parent: nn.Module, names: tuple[str, ...], dtype: torch.dtype, m: int
) -> tuple[Weight, ...] | None:
    children = parent._modules
    found = []
    for name in names:
        linear = children[name]
        if type(linear) is not SparseLinear or _is_watched(linear):
            return None
        parameters, buffers = linear._parameters, linear._buffers
        values: Any = (parameters if "weight_values" in parameters else buffers)["weight_values"]
        rest = (
            buffers["weight_mask"],
            buffers["weight_row_offsets"],
            buffers["weight_col_indices"],
            buffers["weight_scales"],
        )
        weight = weight_of(linear._token, values, rest, parameters["bias"], dtype, m)
        if weight is None:
            return None
        found.append(weight)
    return tuple(found)
