"""Decoder layers, and stacks of them, that compute a new token in one call of the core."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tamis.nn.decoder_plan import Plan, Turns, Unplannable, plan_layers, plan_stack
from tamis.nn.decoder_room import rooms_of
from tamis.ops.decoder import decode

__all__ = ["FusedDecoder", "FusedStack", "fused", "refusal", "unfused"]

# Arguments that change nothing in a step that has no mask.
_IGNORED = {"position_ids", "use_cache", "cache_position"}
# Those that matter to a model's.
_ASKED = ("input_ids", "attention_mask", "position_ids", "cache_position", "cache")
_FARTHEST = 256  # positions may be so many times the tokens
_PLAN = "_tamis_plan"
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing
_is_autocast = torch.is_autocast_enabled
_count_modes = torch._C._len_torch_dispatch_stack
_count_function_modes = torch._C._len_torch_function_stack
_has_global_hook: Callable[[], bool] = torch_module._has_any_global_hook


class _Fused(nn.Module):
    """What ``fused`` puts before a module's own class; parameters and names stay as they are."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles and copies by the module's own class: this one is made at run time."""
        state = {name: value for name, value in self.__dict__.items() if name != _PLAN}
        front, base = type(self).__bases__
        return _restored, (front, base), state


class FusedDecoder(_Fused):
    """A decoder layer whose new tokens are computed in one call of the core.

    One new token a sequence takes that call where nothing could tell the difference: CPU tensors,
    no gradients, autocast or modes, no mask, a plain dynamic cache, SparseLinear throughout,
    transformers' own classes, nobody's hooks on the modules inside. Everything else runs the layer's
    own forward; so does a model that was once asked for hidden states or attentions, as transformers
    leaves its hooks on the layers then.
    Differs: silu(gate) * up is rounded once, not three times, if the dtype has 16 bits.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Output of the layer, as its own class computes it; arguments are that class's."""
        if not args and type(hidden_states) is Tensor:
            y = _layer_step(self, hidden_states, kwargs)
            if y is not None:
                return y
        return super().forward(hidden_states, *args, **kwargs)

    def extra_repr(self) -> str:
        """Shows in print(model), where the class has its layer's own name."""
        return "new tokens in one call"


class FusedStack(_Fused):
    """A model of fused layers that computes a new token in one call for all of them.

    Embedding and output layer stay calls of their own. It does so where every layer would, and
    where no sequence is padded; everything else runs the model's own forward, whose layers see to
    themselves. The cache keeps what ``DynamicCache`` would hold, as views of memory with room
    behind, so that a new token copies none of the others.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the model, as its own class computes it; arguments are that class's."""
        if not args:
            out = _stack_step(self, kwargs)
            if out is not None:
                return out
        return super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """Shows in print(model), where the class has its model's own name."""
        return "new tokens in one call"


def fused(module: nn.Module, front: type[_Fused]) -> None:
    """Makes ``module`` a FusedDecoder or FusedStack of its own class."""
    if not isinstance(module, _Fused):
        module.__class__ = _class_of(front, type(module))


def unfused(module: nn.Module) -> None:
    """Takes ``fused`` back."""
    if isinstance(module, _Fused):
        module.__dict__.pop(_PLAN, None)
        module.__class__ = type(module).__bases__[1]


def refusal(module: nn.Module) -> str:
    """Why a fused module would run its own forward at every step; "" if it would not."""
    stack = isinstance(module, FusedStack)
    part: Any = module.get_submodule("norm" if stack else "input_layernorm")
    dtype = part.weight.dtype
    try:
        _planned_stack(module, dtype) if stack else plan_layers([module], dtype)
    except Unplannable as reason:
        return str(reason)
    return ""


_classes: dict[tuple[type, type], type[nn.Module]] = {}


def _class_of(front: type, base: type) -> type[nn.Module]:
    if (front, base) not in _classes:
        # The name stays: families, and transformers, know modules by it.
        names = {"__module__": base.__module__}
        _classes[front, base] = type(base.__name__, (front, base), names)
    return _classes[front, base]


def _restored(front: type, base: type) -> nn.Module:
    made: nn.Module = nn.Module.__new__(_class_of(front, base))
    return made


def _layer_step(layer: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    if x.dim() != 3 or x.shape[1] != 1 or _recorded(x):
        return None
    cache: Any = None
    turns: Any = None
    for name, value in kwargs.items():
        if name in ("cache", "past_key_values"):
            cache = value
        elif name == "position_embeddings":
            turns = value
        elif value is not None and name not in _IGNORED:
            return None
    plan = _plan_of(layer, x.dtype, lambda: plan_layers([layer], x.dtype))
    if plan is None or turns is None or not _turn(turns, x, plan.heads[2]):
        return None
    cos, sin = turns
    return _decode(plan, cache, x, cos[:, 0], sin[:, 0])


def _turn(turns: tuple[Tensor, Tensor], x: Tensor, d: int) -> bool:
    """Whether these are a cosine and a sine [m or 1, 1, d] for x [m, 1, ..]."""
    fits = (1, 1, d), (x.shape[0], 1, d)
    return (
        turns[0].shape == turns[1].shape
        and turns[0].shape in fits
        and all(each.dtype is x.dtype and each.is_cpu for each in turns)
    )


def _stack_step(model: nn.Module, kwargs: dict[str, Any]) -> Any:
    asked = _asked(kwargs)
    if asked is None:
        return None
    ids, cache = asked["input_ids"], asked["cache"]
    if type(ids) is not Tensor or ids.dim() != 2 or ids.shape[1] != 1 or _recorded(ids):
        return None
    children: Any = model._modules
    embed = children["embed_tokens"]
    dtype = embed.weight.dtype
    plan = _plan_of(model, dtype, lambda: _planned_stack(model, dtype))
    if plan is None or plan.turns is None or not _keeps(model, kwargs, cache):
        return None
    m, tokens = ids.shape[0], cache.layers[0].keys.shape[2]
    if not _sees_all(asked["attention_mask"], m, tokens):
        return None
    turns = _turns_at(plan.turns, asked["position_ids"], m, tokens)
    if turns is None or not _is_last(asked["cache_position"], tokens):
        return None
    y = _decode(plan, cache, embed(ids), *turns)
    return None if y is None else _output_class()(y, cache)


def _planned_stack(model: nn.Module, dtype: torch.dtype) -> Plan:
    return plan_stack(model, dtype, FusedDecoder)


def _asked(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments that matter to a step; None where one of the others asks for more."""
    asked = dict.fromkeys(_ASKED)
    for name, value in kwargs.items():
        if name == "past_key_values":
            asked["cache"] = value
        elif name in asked:
            asked[name] = value
        elif value is not None and name not in _IGNORED and not _says_no(name, value):
            return None
    return asked


def _turns_at(turns: Turns, positions: Any, m: int, tokens: int) -> tuple[Tensor, Tensor] | None:
    """Cos and sin [d] or [m, d] of the new tokens; None for positions of another kind."""
    if positions is None:
        return turns.at(tokens)
    if type(positions) is not Tensor or positions.dim() != 2 or positions.shape[1] != 1:
        return None
    rows = positions.shape[0]
    first, last = map(int, positions.aminmax()) if rows in (1, m) else (-1, -1)
    if first < 0 or last > _FARTHEST * (tokens + 1):  # a table up to there would be of no use
        return None
    return turns.at(last) if rows == 1 else turns.gathered(positions[:, 0])


def _is_last(place: Any, tokens: int) -> bool:
    """Whether the new token's place in the cache, if it is named, is behind the others."""
    return place is None or (type(place) is Tensor and place.tolist() == [tokens])


def _says_no(name: str, value: Any) -> bool:
    """Whether this asks for no more than the hidden states."""
    return (name.startswith("output_") and value is False) or (
        name == "return_dict" and value is True
    )


def _keeps(model: Any, kwargs: dict[str, Any], cache: Any) -> bool:
    """Whether a cache that holds something is to be used."""
    use = kwargs.get("use_cache")
    if use is None:
        use = model.config.use_cache
    layers = getattr(cache, "layers", None)
    return bool(use and layers and getattr(layers[0], "keys", None) is not None)


def _sees_all(mask: Any, m: int, tokens: int) -> bool:
    """Whether the new token attends to every other."""
    if mask is None:
        return True
    if type(mask) is not Tensor or mask.shape != (m, tokens + 1) or mask.is_floating_point():
        return False
    return bool(mask.all())


def _decode(plan: Plan, cache: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """Y of x [m, 1, width] by the core; cos and sin are [d], [1, d] or [m, d]."""
    m, (_, kv_heads, d) = x.shape[0], plan.heads
    if m > plan.limit or x.shape != (m, 1, plan.width):
        return None
    if x.dtype is not plan.dtype or not x.is_cpu:  # an embedding may be hooked
        return None
    rooms = rooms_of(cache, plan.indices, (m, kv_heads, d), x.dtype)
    if rooms is None:
        return None
    cos, sin = cos.contiguous(), sin.contiguous()
    y = decode(
        plan.layers,
        [room.addresses for room in rooms],
        x.contiguous(),
        (cos.data_ptr(), sin.data_ptr(), cos.numel() // d),
        head_dim=d,
        tokens=rooms[0].tokens,
        last=plan.last,
    )
    for index, room in zip(plan.indices, rooms, strict=True):
        room.advance(cache.layers[index])
    return y


def _plan_of(module: nn.Module, dtype: torch.dtype, make: Callable[[], Plan]) -> Plan | None:
    """The module's plan: the last one, unless something that it was made of has changed."""
    plan: Plan | None = module.__dict__.get(_PLAN)
    if plan is None or not plan.holds(dtype):
        try:
            plan = make()
        except Unplannable:
            plan = None
        module.__dict__[_PLAN] = plan
    return plan


def _recorded(x: Tensor) -> bool:
    """Whether something looks at, or keeps, what happens to x."""
    return (
        not x.is_cpu
        or _is_grad_enabled()
        or _is_compiling()
        or _is_tracing()
        or _is_autocast("cpu")
        or _count_modes() > 0
        or _count_function_modes() > 0
        or _has_global_hook()
    )


def _output_class() -> Any:
    """What the models return; only they bring transformers with them."""
    return importlib.import_module("transformers.modeling_outputs").BaseModelOutputWithPast
